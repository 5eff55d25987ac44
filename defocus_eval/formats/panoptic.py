"""COCO's panoptic format: a JSON of segments and a folder of PNGs whose colours are the segments' ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defocus_eval.errors import InputError
from defocus_eval.formats.files import find_folder
from defocus_eval.formats.records import Predictions, Truth

# Keys of an annotation in the order in which each trainer writes them.
WRITERS = {
    "mmdet": ("image_id", "segments_info", "file_name"),
    "detectron2": ("image_id", "file_name", "segments_info"),
}


def is_panoptic(content: object) -> bool:
    """It is an object whose annotations have `segments_info`."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    return (
        isinstance(annotations, list)
        and bool(annotations)
        and isinstance(annotations[0], dict)
        and "segments_info" in annotations[0]
    )


def read_panoptic_truth(path: Path, content: dict, categories: dict[int, str], folder: Path | None) -> Truth:
    """Ground truth, its PNGs in ``folder``, or where data sets keep them.

    Raises:
        InputError: An annotation or the folder is not what it should be.
    """
    for number, category in enumerate(content["categories"], 1):
        if "isthing" not in category:
            raise InputError(f"{path}, category {number} ({category['name']}) has no isthing; add 1 for things, else 0")
    images = {image["id"]: image for image in content["images"]}
    _check_annotations(path, content["annotations"], images, categories, ("id", "category_id", "area", "iscrowd"))
    split = path.stem.removeprefix("panoptic_")
    candidates = [folder] if folder else [path.with_suffix(""), path.parent.parent / "panoptic" / split, path.parent]
    cure = "give the folder of the ground truth's PNGs (--annotations-folder)"
    folder = find_folder(candidates, content["annotations"][0]["file_name"], str(path), cure)
    files = {annotation["image_id"]: folder / annotation["file_name"] for annotation in content["annotations"]}
    return Truth("panoptic", path, content, categories, images, folder, files)


def read_panoptic_predictions(path: Path, content: dict, truth: Truth, folder: Path | None) -> Predictions:
    """Predictions of every image of the ground truth, their PNGs in ``folder``, or where trainers write them.

    Raises:
        InputError: The ground truth is of another kind, an image has no prediction or two, an annotation or the
            folder is not what it should be.
    """
    if truth.kind not in ("panoptic", "images"):
        raise InputError(
            f"{path} holds panoptic predictions, {truth.path} is no panoptic ground truth; give panoptic_*.json"
        )
    annotations = content["annotations"]
    _check_annotations(path, annotations, truth.images, truth.categories, ("id", "category_id"))
    answered = {annotation["image_id"] for annotation in annotations}
    wanted = truth.files or truth.images
    missing = [image_id for image_id in wanted if image_id not in answered]
    if missing:
        raise InputError(
            f"{path} has no annotation for {len(missing)} of {len(wanted)} images, the first of id {missing[0]}; "
            "predict them all (an image with no segment has an empty segments_info)"
        )
    candidates = [folder] if folder else [path.with_suffix(""), path.parent / "panoptic", path.parent]
    cure = "give the folder of the predicted PNGs (--predictions-folder); Detectron2 deletes its own unless told not to"
    folder = find_folder(candidates, annotations[0]["file_name"], str(path), cure)
    files = {annotation["image_id"]: folder / annotation["file_name"] for annotation in annotations}
    return Predictions(
        ("panoptic",),
        _writer(annotations),
        path,
        {"panoptic": annotations},
        folder,
        files,
        {"panoptic": lambda index: f"{path}, annotation {index + 1}"},
    )


def _writer(annotations: list[dict]) -> str:
    keys = {tuple(annotation) for annotation in annotations}
    for writer, order in WRITERS.items():
        if keys == {order}:
            return writer
    return "unknown"


def _check_annotations(
    path: Path, annotations: list[dict], images: Mapping, categories: Mapping, segment_keys: tuple[str, ...]
) -> None:
    seen = set()
    for number, annotation in enumerate(annotations, 1):
        where = f"{path}, annotation {number}"
        if not isinstance(annotation, dict):
            raise InputError(f"{where} is no object; write image_id, file_name and segments_info")
        absent = [key for key in ("image_id", "file_name", "segments_info") if key not in annotation]
        if absent:
            raise InputError(f"{where} has no {', '.join(absent)}; write image_id, file_name and segments_info")
        if annotation["image_id"] not in images:
            raise InputError(
                f"{where}: image_id {annotation['image_id']} is not among the images; give the ground truth that the "
                "predictions were made for"
            )
        if annotation["image_id"] in seen:
            raise InputError(f"{where}: image {annotation['image_id']} was answered before; keep one annotation of it")
        seen.add(annotation["image_id"])
        ids = set()
        for segment in annotation["segments_info"]:
            absent = [key for key in segment_keys if key not in segment]
            if absent:
                raise InputError(f"{where}: a segment has no {', '.join(absent)}; write {', '.join(segment_keys)}")
            if segment["category_id"] not in categories:
                raise InputError(
                    f"{where}: category_id {segment['category_id']} is not among the categories; "
                    "write the ids of the ground truth's categories"
                )
            if segment["id"] in ids:
                raise InputError(f"{where}: segment {segment['id']} stands there twice; give each its own id")
            ids.add(segment["id"])
