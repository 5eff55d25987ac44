"""Average precision and recall of matched detections, for many weightings of the images at once.

With weights of one these are COCO's numbers. A resampled set of images is a weighting, too: an image that is drawn
twice counts twice.

Source of the rule: `accumulate` of pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from defocus_eval.scores.matching import ALL_BITS, AREAS, BITS, THRESHOLDS, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
# Numbers held at a time.
BUDGET = 4_000_000


@dataclass(frozen=True)
class Accumulated:
    """Average precision and recall.

    Attributes:
        precision: `(areas, thresholds, categories, samples)`; NaN where no object of the class counts.
        recall: The same, over all detections.
    """

    precision: np.ndarray
    recall: np.ndarray


def count_objects(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Objects that count, `(areas, categories, samples)` float64."""
    counts = np.zeros((len(AREAS), matches.categories, len(weights)))
    for area, wanted in enumerate(matches.wanted):
        image, category = matches.objects.image[wanted], matches.objects.category[wanted]
        order = np.argsort(category, kind="stable")
        present, starts = np.unique(category[order], return_index=True)
        if len(present):
            counts[area, present] = np.add.reduceat(weights[:, image[order]].astype(np.float64), starts, axis=1).T
    return counts


def accumulate(matches: Matches, weights: np.ndarray, most: int | None = None) -> Accumulated:
    """Average precision and recall of each class.

    Args:
        matches: What was matched.
        weights: `(samples, images)`, whole numbers.
        most: Detections of an image and class that count; None for all that were matched.
    """
    shape = (len(AREAS), len(THRESHOLDS), matches.categories, len(weights))
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    objects = count_objects(matches, weights)
    for area in range(len(AREAS)):
        for category in np.flatnonzero(objects[area].any(1)):
            found = _accumulate_class(matches, weights, area, category, objects[area, category], most)
            precision[area, :, category], recall[area, :, category] = found
    return Accumulated(precision, recall)


def recall_of(matches: Matches, weights: np.ndarray, most: int | None) -> np.ndarray:
    """Recall of objects of all sizes alone, `(thresholds, categories, samples)`; arguments as for `accumulate`."""
    recall = np.full((len(THRESHOLDS), matches.categories, len(weights)), np.nan)
    hits = matches.matched[0] & ~matches.ignored[0]
    if most is not None:
        hits = np.where(matches.rank < most, hits, 0)
    objects = count_objects(matches, weights)[0]
    for category in np.flatnonzero(objects.any(1)):
        rows = slice(*matches.starts[category : category + 2])
        found = np.flatnonzero(hits[rows])
        drawn = weights[:, matches.found.image[rows][found]].astype(np.float64)
        sums = drawn @ (hits[rows][found, None] & BITS > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall[:, category] = np.where(objects[category] > 0, sums.T / objects[category], np.nan)
    return recall


def _accumulate_class(
    matches: Matches, weights: np.ndarray, area: int, category: int, objects: np.ndarray, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and recall of one class, each `(thresholds, samples)`."""
    rows = np.arange(matches.starts[category], matches.starts[category + 1])
    if most is not None:
        rows = rows[matches.rank[rows] < most]
    matched, ignored = matches.matched[area, rows], matches.ignored[area, rows]
    image = matches.found.image[rows]
    counted = ~ignored & ALL_BITS
    # Precision is read where something is found. In between, a sum over what is false is enough; what finds nothing
    # at any threshold is false at all or ignored at all, so that one sum serves all thresholds.
    some = np.flatnonzero(matched & counted)
    never = np.flatnonzero((matched == 0) & (counted != 0))
    others = np.flatnonzero((matched != 0) & (counted != 0))
    whole = others[counted[others] == ALL_BITS]
    partly = others[counted[others] != ALL_BITS]
    hit = (matched[some] & counted[some])[:, None] & BITS > 0
    before = [np.searchsorted(rows, some, side="right") for rows in (never, whole, partly)]
    precision = np.zeros((len(THRESHOLDS), len(weights)))
    recall = np.zeros_like(precision)
    step = max(1, BUDGET // max(len(never), len(others), 1))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        drawn = weights[part][:, image[some]].astype(np.float64)
        steady = _sums(weights[part], image[never], before[0]) + _sums(weights[part], image[whole], before[1])
        total = objects[part, None]
        for threshold in range(len(THRESHOLDS)):
            columns = np.flatnonzero(hit[:, threshold])
            if not len(columns):
                continue
            so_far = steady[:, columns]
            if len(partly):
                here = counted[partly] & BITS[threshold] > 0
                so_far += _sums(weights[part], image[partly], before[2][columns], here)
            found = np.cumsum(drawn[:, columns], axis=1)
            precision[threshold, part] = _average(found, so_far, total)
            recall[threshold, part] = found[:, -1]
    with np.errstate(invalid="ignore"):
        recall /= objects
    undefined = objects == 0
    precision[:, undefined] = recall[:, undefined] = np.nan
    return precision, recall


def _sums(weights: np.ndarray, image: np.ndarray, ends: np.ndarray, here: np.ndarray | None = None) -> np.ndarray:
    """Weight of the first so many detections, for each of ``ends``, `(samples, ends)`."""
    sums = np.zeros((len(weights), len(image) + 1))
    drawn = weights[:, image]
    np.cumsum(drawn if here is None else drawn * here, axis=1, out=sums[:, 1:])
    return sums[:, ends]


def _average(found: np.ndarray, counted: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Precision averaged over `RECALLS`, `(samples,)`.

    Args:
        found: Objects found so far, at each detection that finds one, `(samples, detections)`.
        counted: Detections so far that count, the same.
        objects: Objects there are, `(samples, 1)`.
    """
    precision = found / (counted + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Each recall level reads the precision where it is first reached; levels that are never reached read zero.
    reached = np.searchsorted(RECALLS, found / np.maximum(objects, 1), side="right")
    reached[:, 1:] -= reached[:, :-1].copy()
    return np.einsum("sd,sd->s", envelope, reached) / len(RECALLS)


def average_of_images(matches: Matches, most: int | None = None) -> np.ndarray:
    """Average precision of each image taken by itself: the mean over its classes, `(images,)`; NaN without objects."""
    area = 0
    wanted = matches.wanted[area]
    pair = matches.objects.image[wanted].astype(np.int64) * matches.categories + matches.objects.category[wanted]
    pairs, objects = np.unique(pair, return_counts=True)
    counted = ~matches.ignored[area] & ALL_BITS
    rows = np.flatnonzero(counted if most is None else counted * (matches.rank < most))
    found_pair = matches.found.image[rows].astype(np.int64) * matches.categories + matches.found.category[rows]
    order = np.argsort(found_pair, kind="stable")
    rows, found_pair = rows[order], found_pair[order]
    # Only detections in a pair with objects; their pairs by number, one after the other.
    known = np.isin(found_pair, pairs)
    rows, group = rows[known], np.searchsorted(pairs, found_pair[known])
    averages = np.zeros(len(pairs))
    for bit in BITS:
        hit = matches.matched[area, rows] & counted[rows] & bit > 0
        so_far, found = _sums_within(counted[rows] & bit > 0, group)[hit], _sums_within(hit, group)[hit]
        averages += _averages_within(found, so_far, group[hit], objects) / len(BITS)
    image, starts = np.unique(pairs // matches.categories, return_index=True)
    of_images = np.full(matches.images, np.nan)
    if len(image):
        of_images[image] = np.add.reduceat(averages, starts) / np.diff([*starts, len(pairs)])
    return of_images


def _sums_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Running sums that start anew with each group; groups lie together, in rising order."""
    sums = np.cumsum(values)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    before = np.repeat((sums - values)[starts], np.diff([*starts, len(values)]))
    return sums - before


def _averages_within(found: np.ndarray, counted: np.ndarray, group: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """`_average` of each group, `(groups,)`; what finds nothing is left out, and 0 where nothing is left."""
    averages = np.zeros(len(objects))
    if not len(found):
        return averages
    # From the right, each group lies above the last, so that one maximum serves all.
    lift = 2.0 * (group[-1] - group)
    precision = found / (counted + np.spacing(1))
    envelope = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
    reached = np.searchsorted(RECALLS, found / objects[group], side="right")
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    steps = np.diff(reached, prepend=0)
    steps[starts] = reached[starts]
    averages[group[starts]] = np.add.reduceat(envelope * steps, starts) / len(RECALLS)
    return averages
