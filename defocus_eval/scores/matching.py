"""Which detection finds which object, by COCO's rule, for all size ranges and IoU thresholds at once.

pycocotools matches image by image and class by class in Python. Here the pairs of an image and a class go side by
side: the best detection of each pair, then the second of each, and so on. What comes out is kept, so that scores of
resampled sets, of single images and over score thresholds need no matching again.

Source of the rule: `evaluateImg` of pycocotools, `evaluate_img` of lvis-api.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
# Bit t of a number stands for `THRESHOLDS[t]`.
BITS = (1 << np.arange(len(THRESHOLDS))).astype(np.uint16)
ALL_BITS = np.uint16(BITS.sum())
# Numbers held at a time while pairs are matched side by side.
BUDGET = 4_000_000

Overlaps = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Objects:
    """Objects of the ground truth, or detections, by columns.

    Attributes:
        image: Row of the image, `(n,)`.
        category: Row of the class, `(n,)`.
        area: Pixels, `(n,)`.
        score: `(n,)`; of the ground truth zeros.
        crowd: `(n,)` bool, a region of many objects. Of detections False.
        ignored: `(n,)` bool, not to be found. Of detections: no mistake where they find nothing.
    """

    image: np.ndarray
    category: np.ndarray
    area: np.ndarray
    score: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: np.ndarray) -> Objects:
        """Those at ``rows``, indices `(m,)` or a mask `(n,)` bool, in their order."""
        columns = (self.image, self.category, self.area, self.score, self.crowd, self.ignored)
        return Objects(*(column[rows] for column in columns))


@dataclass(frozen=True)
class Matches:
    """What was matched. Detections lie by class, then by falling score, as they are accumulated.

    Attributes:
        images: Number of images.
        categories: Number of classes.
        found: The detections, cut to the most a class and image may have.
        source: `(n,)` index of each detection among those given.
        rank: `(n,)` place of a detection among those of its image and class.
        starts: `(categories + 1,)` where each class begins.
        matched: `(areas, n)` uint16, a bit for each threshold at which the detection finds an object.
        astray: `(areas, n)` uint16, a bit where that object does not count.
        objects: The ground truth.
        wanted: `(areas, objects)` bool, objects that count.
    """

    images: int
    categories: int
    found: Objects
    source: np.ndarray
    rank: np.ndarray
    starts: np.ndarray
    matched: np.ndarray
    astray: np.ndarray
    objects: Objects
    wanted: np.ndarray

    @cached_property
    def ignored(self) -> np.ndarray:
        """`(areas, n)` uint16, a bit where a detection counts neither as found nor as false.

        It does where it finds an object that does not count, and where it finds none and is of another size.
        """
        low, high = np.array(list(AREAS.values())).T[..., None]
        outside = (self.found.area < low) | (self.found.area > high) | self.found.ignored
        return self.astray | np.where(outside, ~self.matched & ALL_BITS, 0).astype(np.uint16)


def match(
    objects: Objects,
    detections: Objects,
    overlaps: Overlaps,
    images: int,
    categories: int,
    most: int | None = 100,
    lost: np.ndarray | None = None,
) -> Matches:
    """Matches detections with objects of their image and class.

    Args:
        objects: Ground truth.
        detections: In the order in which ties of score are broken.
        overlaps: IoU, `(detections, objects)`, of rows of the two, all of one image and class.
        images: Number of images.
        categories: Number of classes.
        most: Detections of one image and class that count, the best first; None for all.
        lost: `(objects,)` bool, objects that are taken by what finds them, which then counts as having found none:
            those of id 0, by which pycocotools marks what is not found.
    """
    # Ties go to the earlier image, then to the earlier entry.
    by_pair = np.lexsort((-detections.score, detections.category, detections.image))
    pair = detections.image[by_pair].astype(np.int64) * categories + detections.category[by_pair]
    rank = _rank(pair)
    if most is not None:
        by_pair, pair, rank = by_pair[rank < most], pair[rank < most], rank[rank < most]
    found = detections.take(by_pair)

    low, high = np.array(list(AREAS.values())).T[..., None]
    wanted = ~(objects.ignored | (objects.area < low) | (objects.area > high))
    lost = np.zeros(len(objects), bool) if lost is None else lost
    matched = np.zeros((len(AREAS), len(found)), np.uint16)
    astray = np.zeros_like(matched)
    for batch in _batches(objects, pair, categories, by_pair, overlaps):
        rows, first, second = batch.match(wanted, objects.crowd, lost)
        matched[:, rows] |= first
        astray[:, rows] |= second
    order = np.lexsort((found.image, -found.score, found.category))
    found = found.take(order)
    starts = np.searchsorted(found.category, np.arange(categories + 1))
    return Matches(
        images,
        categories,
        found,
        by_pair[order],
        rank[order],
        starts,
        matched[:, order],
        astray[:, order],
        objects,
        wanted,
    )


@dataclass(frozen=True)
class _Batch:
    """Pairs of an image and a class, matched side by side.

    Attributes:
        rows: `(pairs, most detections)` rows of the detections, best first; -1 where a pair has fewer.
        targets: `(pairs, most objects)` rows of the objects, the last first; -1 where a pair has fewer.
        iou: `(pairs, most detections, most objects)`, -1 where there is no such pair.
    """

    rows: np.ndarray
    targets: np.ndarray
    iou: np.ndarray

    def match(
        self, wanted: np.ndarray, crowd: np.ndarray, lost: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of detections, and bits by area: found something; what it found does not count."""
        pairs, detections, _ = self.iou.shape
        counts = np.moveaxis(wanted[:, self.targets], 0, 1)[:, :, None] & (self.targets >= 0)[:, None, None]
        reusable, unseen = (kind[self.targets][:, None, None] for kind in (crowd, lost))
        # Pairs, areas, thresholds, objects.
        taken = np.zeros((pairs, len(AREAS), len(THRESHOLDS), self.targets.shape[1]), bool)
        least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
        hits = np.zeros((pairs, detections, len(AREAS)), np.uint16)
        misses = np.zeros_like(hits)
        for rank in range(detections):
            here = np.flatnonzero(self.rows[:, rank] >= 0)
            iou = self.iou[here, rank][:, None, None]
            possible = (iou >= least) & ~(taken[here] & ~reusable[here])
            # An object that counts goes before one that does not; at equal IoU the later one, here the first, wins.
            counting = possible & counts[here]
            candidates = np.where(counting.any(-1, keepdims=True), counting, possible)
            best = np.where(candidates, iou, -1.0).argmax(-1)[..., None]
            hit = np.take_along_axis(possible, best, -1)
            now_taken = taken[here]
            np.put_along_axis(now_taken, best, hit | np.take_along_axis(now_taken, best, -1), -1)
            taken[here] = now_taken
            on_counting = np.take_along_axis(np.broadcast_to(counts[here], possible.shape), best, -1)
            found = hit & ~(on_counting & np.take_along_axis(np.broadcast_to(unseen[here], possible.shape), best, -1))
            hits[here, rank] = (found[..., 0] * BITS).sum(-1)
            misses[here, rank] = ((hit & ~on_counting)[..., 0] * BITS).sum(-1)
        used = self.rows >= 0
        return self.rows[used], hits[used].T, misses[used].T


def _rank(groups: np.ndarray) -> np.ndarray:
    """Place of each element within its group; equal groups lie together."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff([*starts, len(groups)]))


def _batches(
    objects: Objects, pair: np.ndarray, categories: int, by_pair: np.ndarray, overlaps: Overlaps
) -> Iterator[_Batch]:
    """Batches of pairs with both objects and detections, of like size, so that little is padding."""
    true_pair = objects.image.astype(np.int64) * categories + objects.category
    by_true_pair = np.argsort(true_pair, kind="stable")
    true_pair = true_pair[by_true_pair]
    both = np.intersect1d(true_pair, pair)
    first, last = np.searchsorted(pair, both), np.searchsorted(pair, both, "right")
    true_first, true_last = np.searchsorted(true_pair, both), np.searchsorted(true_pair, both, "right")
    detections, targets = last - first, true_last - true_first
    # Powers of two: a batch is at most half padding in either direction.
    size_class = np.ceil(np.log2(targets)).astype(int) * 64 + np.ceil(np.log2(detections)).astype(int)
    order = np.argsort(size_class, kind="stable")
    cuts = np.flatnonzero(np.diff(size_class[order])) + 1
    for group in np.split(order, cuts):
        if not len(group):
            continue
        width, height = int(targets[group].max()), int(detections[group].max())
        step = max(1, BUDGET // (width * (height + len(AREAS) * len(THRESHOLDS))))
        for chunk in (group[start : start + step] for start in range(0, len(group), step)):
            rows = np.full((len(chunk), height), -1)
            columns = np.full((len(chunk), width), -1)
            iou = np.full((len(chunk), height, width), -1.0)
            for line, index in enumerate(chunk.tolist()):
                mine = np.arange(first[index], last[index])
                theirs = by_true_pair[true_first[index] : true_last[index]][::-1]
                rows[line, : len(mine)] = mine
                columns[line, : len(theirs)] = theirs
                iou[line, : len(mine), : len(theirs)] = overlaps(by_pair[mine], theirs)
            yield _Batch(rows, columns, iou)
