"""The images of a page: which are shown, and what is drawn on each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from defocus_eval.formats import Predictions, Truth, prediction_maps, read_label_map, read_segment_ids
from defocus_eval.formats.masks import run_length_code
from defocus_eval.pages import pictures
from defocus_eval.pages.palette import BACKGROUNDS, category_colors
from defocus_eval.progress import with_progress
from defocus_eval.scores.semantic import Pixels, read_labels

# Long sides tried in turn until all pictures together fit.
SIDES = (640, 480, 320, 224)
MOST_CHARACTERS = 7_500_000
# A prediction below neither is seen nor counted on the page.
LOWEST_SCORE = 0.05
MOST_OBJECTS = 100
MATCH_IOU = 0.5

Maker = Callable[[int, "Item"], dict[str, Any]]


@dataclass(frozen=True)
class Item:
    """An image while it is made.

    Attributes:
        image_id: Its id.
        size: Width and height of its picture.
        scale: Both over those of the image.
    """

    image_id: int
    size: tuple[int, int]
    scale: tuple[float, float]


def choose_images(
    values: Sequence[Mapping[int, float]], weights: Mapping[int, float], count: int
) -> dict[str, list[int]]:
    """Ids of the images shown, by the name of their tab.

    Args:
        values: How well each run does on each image, 0 to 1; one mapping for a run, two for a comparison.
        weights: How much there is on an image: where two are equally good, the richer one says more.
        count: Images in a tab.
    """
    last = values[-1]
    order = sorted(last, key=lambda image_id: (last[image_id], -weights.get(image_id, 0)))
    best = sorted(last, key=lambda image_id: (-last[image_id], -weights.get(image_id, 0)))
    tabs = {"worst": order[:count], "best": best[:count]}
    if len(values) > 1:
        change = {image_id: last[image_id] - values[0][image_id] for image_id in last if image_id in values[0]}
        changed = sorted(change, key=lambda image_id: -abs(change[image_id]))
        return {"most changed": changed[:count], **tabs}
    return tabs


def count_objects(truth: Truth) -> dict[int, int]:
    """How many annotations, or segments, an image has; none for label maps."""
    counts: dict[int, int] = defaultdict(int)
    for annotation in truth.data.get("annotations", ()):
        counts[annotation["image_id"]] += len(annotation.get("segments_info", (0,)))
    return counts


def build_gallery(
    truth: Truth,
    runs: Sequence[Predictions],
    names: Sequence[str],
    images: Path,
    tabs: Mapping[str, Sequence[int]],
    values: Sequence[Mapping[int, float]],
    value_name: str,
) -> dict[str, Any]:
    """All that the page's script needs to draw the images.

    Args:
        truth: Ground truth.
        runs: Predictions of one run, or of two.
        names: What the runs are called.
        images: Folder of the images.
        tabs: Ids of the images, by tab.
        values: How well each run does on an image.
        value_name: What that value is called.

    Raises:
        InputError: An image or a PNG cannot be read.
    """
    wanted = list(dict.fromkeys(image_id for ids in tabs.values() for image_id in ids))
    files = pictures.find_images(images, {image_id: truth.images[image_id] for image_id in wanted})
    colors = category_colors(truth.categories)
    index = {category_id: number for number, category_id in enumerate(truth.categories)}
    common: dict[str, Any] = {
        "names": list(truth.categories.values()),
        "colors": [colors[category_id] for category_id in truth.categories],
        "runs": list(names),
        "groups": {tab: [wanted.index(image_id) for image_id in ids] for tab, ids in tabs.items()},
        "masks": any("segm" in run.kind for run in runs),
    }
    if truth.kind in ("instances", "lvis"):
        maker = _objects_maker(truth, runs, index)
    else:
        layers = _segment_layers if truth.kind == "panoptic" else _label_layers
        maker = _layers_maker(layers(truth, runs, colors, wanted), index)
        common["panels"] = ["ground truth", *(names if len(runs) > 1 else ("prediction",))]
        if truth.kind != "panoptic" and len(runs) == 1:
            common["panels"].append("wrong pixels")
    for side in SIDES:
        made = [_make_item(image_id, files[image_id], side, truth, maker, values, value_name) for image_id in wanted]
        store = {name: file for item in made for name, file in item.pop("files").items()}
        if sum(len(text) for _, text in store.values()) <= MOST_CHARACTERS:
            break
    return {**common, "items": made, "files": store}


def _make_item(
    image_id: int,
    path: Path,
    side: int,
    truth: Truth,
    maker: Maker,
    values: Sequence[Mapping[int, float]],
    value_name: str,
) -> dict[str, Any]:
    text, size, original = pictures.read_small(path, side)
    record = truth.images[image_id]
    width, height = record.get("width", original[0]), record.get("height", original[1])
    item = Item(image_id, size, (size[0] / width, size[1] / height))
    shown = " → ".join(f"{run[image_id]:.2f}" for run in values if image_id in run)
    made = maker(image_id, item)
    files = {f"{image_id}": ("image/jpeg", text), **made.pop("files", {})}
    return {
        "name": record["file_name"],
        "value": f"{value_name} {shown}",
        "width": size[0],
        "height": size[1],
        "image": f"{image_id}",
        "files": files,
        **made,
    }


def _objects_maker(truth: Truth, runs: Sequence[Predictions], index: Mapping[int, int]) -> Maker:
    """Boxes and masks; where predictions have both, masks with the boxes around them."""
    part = "segm" if all("segm" in run.kind for run in runs) else "bbox"
    true_by_image = _by_image(truth.data["annotations"])
    found_by_image = [_by_image(run.entries[part]) for run in runs]

    def make(image_id: int, item: Item) -> dict[str, Any]:
        record = truth.images[image_id]
        true = true_by_image[image_id]
        codes = [_code(annotation, record) for annotation in true] if part == "segm" else None
        drawn = [_object(annotation, codes[row] if codes else None, item, index) for row, annotation in enumerate(true)]
        for target, annotation in zip(drawn, true):
            if annotation.get("iscrowd"):
                target["crowd"] = True
        made = []
        for found in found_by_image:
            shown = sorted(found[image_id], key=lambda entry: -entry["score"])[:MOST_OBJECTS]
            shown = [entry for entry in shown if entry["score"] >= LOWEST_SCORE]
            objects = [_object(entry, entry.get("segmentation"), item, index) for entry in shown]
            for target, entry, (match, iou) in zip(objects, shown, match_objects(true, shown, codes)):
                target |= {"score": round(entry["score"], 4), "match": match, "iou": round(iou, 3)}
            made.append(objects)
        present = sorted({target["category"] for target in drawn})
        return {"truth": drawn, "found": made, "classes": present}

    return make


def match_objects(true: Sequence[dict], found: Sequence[dict], codes: Sequence[dict] | None) -> list[tuple[int, float]]:
    """What each prediction matches, as COCO's evaluation does at an IoU of 0.5.

    The best prediction comes first and takes the object of its class that it overlaps most and that is free. So what a
    prediction matches does not depend on those with lower scores.

    Args:
        true: Annotations of an image.
        found: Predictions on it, the best first.
        codes: Run-length codes of `true`, where masks are compared.

    Returns:
        For each prediction the index of its object and their IoU; -1 where it matches nothing, -2 where it lies on a
        crowd, with the largest IoU there is.
    """
    if not true or not found:
        return [(-1, 0.0)] * len(found)
    crowd = [bool(annotation.get("iscrowd")) for annotation in true]
    first = [entry["segmentation"] if codes else entry["bbox"] for entry in found]
    second = codes or [annotation["bbox"] for annotation in true]
    overlaps = np.asarray(coco_mask.iou(first, second, crowd)).reshape(len(found), len(true))
    taken: set[int] = set()
    matches = []
    for entry, row in zip(found, overlaps):
        same = [i for i, annotation in enumerate(true) if annotation["category_id"] == entry["category_id"]]
        free = [i for i in same if i not in taken and not crowd[i] and row[i] >= MATCH_IOU]
        if free:
            # Of two that are overlapped alike, the later one, as pycocotools takes it.
            match = max(reversed(free), key=lambda i: row[i])
            taken.add(match)
            matches.append((match, float(row[match])))
        elif any(crowd[i] and row[i] >= MATCH_IOU for i in same):
            matches.append((-2, float(max(row[i] for i in same))))
        else:
            matches.append((-1, float(max(row[same], default=0.0))))
    return matches


def _object(record: dict, code: dict | None, item: Item, index: Mapping[int, int]) -> dict[str, Any]:
    box = record["bbox"] if "bbox" in record else coco_mask.toBbox(code).tolist()
    scaled = [round(float(value) * item.scale[axis % 2], 1) for axis, value in enumerate(box)]
    made = {"category": index[record["category_id"]], "box": scaled}
    if code is not None:
        made["mask"] = pictures.shrink_mask(code, item.size)
    return made


def _code(annotation: dict, record: dict) -> dict:
    """Compressed run-length code of an annotation's mask, an empty one if it has none."""
    segmentation, size = annotation.get("segmentation"), (record["height"], record["width"])
    if not segmentation:
        return coco_mask.encode(np.zeros(size, np.uint8, order="F"))
    return run_length_code(segmentation, *size)


def _by_image(records: Sequence[dict]) -> dict[int, list[dict]]:
    found = defaultdict(list)
    for record in records:
        found[record["image_id"]].append(record)
    return found


def _layers_maker(layers: Callable[[int, Item], tuple[list[str], set[int]]], index: Mapping[int, int]) -> Maker:
    """Pictures to lay over the image: the truth's, each run's, and what else a panel shows."""

    def make(image_id: int, item: Item) -> dict[str, Any]:
        texts, present = layers(image_id, item)
        files = {f"{image_id}-{number}": ("image/png", text) for number, text in enumerate(texts)}
        classes = sorted(index[category_id] for category_id in present)
        return {"overlays": list(files), "files": files, "classes": classes, "truth": [], "found": []}

    return make


def _label_layers(truth: Truth, runs: Sequence[Predictions], colors: Mapping[int, tuple], wanted: Sequence[int]):
    painted = {label: colors[label] for label, name in truth.categories.items() if name.lower() not in BACKGROUNDS}
    maps = [_read_maps(run, truth, set(wanted)) for run in runs]

    def make(image_id: int, item: Item) -> tuple[list[str], set[int]]:
        true = read_label_map(truth.files[image_id])
        found = [run[image_id] for run in maps]
        texts = [pictures.label_picture(labels, painted, item.size) for labels in (true, *found)]
        if len(runs) == 1:
            texts.append(pictures.wrong_picture(true, found[0], truth.categories, item.size))
        return texts, {int(label) for labels in (true, *found) for label in np.unique(labels)} & set(truth.categories)

    return make


def _read_maps(run: Predictions, truth: Truth, wanted: set[int]) -> dict[int, np.ndarray]:
    """Predicted label maps of the images wanted, their labels read as the scores read them."""
    kept, values = {}, np.zeros(0, np.int64)
    # All are looked at: which labels a writer means shows in those of the whole set.
    for image_id, labels in with_progress(prediction_maps(run, truth), len(truth.images), "label maps"):
        values = np.union1d(values, np.unique(labels))
        if image_id in wanted:
            kept[image_id] = labels
    nothing = np.zeros_like(values)
    table, _ = read_labels(Pixels(nothing, nothing, values, nothing), truth)
    return kept if table is None else {image_id: table[labels] for image_id, labels in kept.items()}


def _segment_layers(truth: Truth, runs: Sequence[Predictions], colors: Mapping[int, tuple], wanted: Sequence[int]):
    records = [truth.data["annotations"], *(run.entries["panoptic"] for run in runs)]
    segments = [
        {
            record["image_id"]: {segment["id"]: segment["category_id"] for segment in record["segments_info"]}
            for record in part
            if record["image_id"] in set(wanted)
        }
        for part in records
    ]
    files = [truth.files, *(run.files for run in runs)]

    def make(image_id: int, item: Item) -> tuple[list[str], set[int]]:
        texts = []
        for part, paths in zip(segments, files):
            ids = read_segment_ids(paths[image_id])
            texts.append(pictures.segment_picture(ids, part[image_id], colors, item.size))
        return texts, {category for part in segments for category in part[image_id].values()}

    return make
