"""Reading ground truth and predictions of every kind; format and writer are recognised by content.

kind of truth   recognised by
instances       a JSON with images, categories and annotations
lvis            the same, its images with neg_category_ids
panoptic        the same, its annotations with segments_info
images          a JSON with images and categories only: a test set
cityscapes      a folder with *_gtFine_labelIds.png
ade20k          a folder with ADE_*.png
semantic        a folder with other PNGs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from defocus_eval.errors import InputError
from defocus_eval.formats import coco, label_maps, lvis, panoptic
from defocus_eval.formats.files import read_json, read_label_map, read_segment_ids
from defocus_eval.formats.label_maps import prediction_maps
from defocus_eval.formats.records import Predictions, Truth

__all__ = [
    "Predictions",
    "Truth",
    "prediction_maps",
    "read_label_map",
    "read_predictions",
    "read_segment_ids",
    "read_truth",
]

# What mmdet appends to `outfile_prefix`.
PARTS = (".bbox.json", ".segm.json", ".panoptic.json")


def read_truth(
    path: str | Path,
    folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    ignore_label: int = 255,
) -> Truth:
    """Reads ground truth.

    Args:
        path: A JSON file, or a folder of label maps.
        folder: Where the PNGs of a panoptic JSON lie; without it, it is searched for.
        classes: Names of the labels, for label maps that are not those of Cityscapes.
        ignore_label: The label that does not count, for label maps that are neither Cityscapes nor ADE20K.

    Raises:
        InputError: The file is missing, broken or of no known kind.
    """
    path, folder = Path(path), Path(folder) if folder else None
    if path.is_dir():
        return label_maps.read_truth_folder(path, classes, ignore_label)
    cure = "give the annotations that the predictions were made for"
    content = read_json(path, cure)
    coco.check_lists(path, content, cure)
    categories = {category["id"]: category["name"] for category in content["categories"]}
    annotations = content.get("annotations")
    if not annotations:
        images = {image["id"]: image for image in content["images"]}
        return Truth("images", path, content, categories, images)
    if panoptic.is_panoptic(content):
        return panoptic.read_panoptic_truth(path, content, categories, folder)
    truth = coco.read_truth(path, content, categories)
    if lvis.is_lvis(content):
        return lvis.read_lvis_truth(path, content, truth)
    return truth


def read_predictions(path: str | Path, truth: Truth, folder: str | Path | None = None) -> Predictions:
    """Reads predictions made for ``truth``.

    Args:
        path: A JSON file of COCO results, panoptic annotations or Detectron2's masks of classes; a folder of label
            maps; or the `outfile_prefix` of mmdet, for all that lies there.
        truth: What they were made for.
        folder: Where the PNGs of a panoptic JSON lie; without it, it is searched for.

    Raises:
        InputError: The file is missing, broken, of no known kind, or does not belong to ``truth``.
    """
    path, folder = Path(path), Path(folder) if folder else None
    if path.is_dir():
        if not truth.files or truth.kind == "panoptic":
            raise InputError(
                f"{path} is a folder, {truth.path} no folder of label maps; give the JSON file of the predictions, or "
                "label maps as ground truth"
            )
        return label_maps.read_prediction_folder(path, truth)
    if not path.exists():
        parts = [part for suffix in PARTS if (part := path.with_name(path.name + suffix)).is_file()]
        # A panoptic truth has no use for boxes, nor the other way round.
        parts = [part for part in parts if part.name.endswith(".panoptic.json") == (truth.kind == "panoptic")]
        if parts:
            return _join(path, [_read_file(part, truth, folder) for part in parts])
    return _read_file(path, truth, folder)


def _read_file(path: Path, truth: Truth, folder: Path | None) -> Predictions:
    cure = "give the file of predictions that the trainer wrote"
    content = read_json(path, cure)
    if isinstance(content, dict):
        if panoptic.is_panoptic(content):
            return panoptic.read_panoptic_predictions(path, content, truth, folder)
        raise InputError(f"{path} holds an object without panoptic annotations, so no predictions; {cure}")
    if not isinstance(content, list):
        raise InputError(f"{path} is not a COCO results file: it holds a {type(content).__name__}, not a list; {cure}")
    if not content:
        raise InputError(f"{path} holds no predictions; train for longer, or {cure}")
    first = content[0]
    if isinstance(first, dict) and "segmentation" in first and "file_name" in first and "image_id" not in first:
        if not truth.files or truth.kind == "panoptic":
            raise InputError(
                f"{path} holds masks of classes, {truth.path} no label maps; give the folder of the true label maps"
            )
        return label_maps.read_prediction_masks(path, content, truth)
    return coco.read_results(path, content, truth)


def _join(path: Path, parts: list[Predictions]) -> Predictions:
    joined = parts[0]
    for part in parts[1:]:
        joined = replace(
            joined,
            kind=joined.kind + part.kind,
            writer=joined.writer if joined.writer == part.writer else "unknown",
            entries={**joined.entries, **part.entries},
            numbers={**joined.numbers, **part.numbers},
            notes=joined.notes + part.notes,
            box_areas=part.box_areas if joined.box_areas is None else joined.box_areas,
        )
    return replace(joined, path=path)
