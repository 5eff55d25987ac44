"""Label maps, one number a pixel: folders of PNGs, and the run-length codes of Detectron2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from defocus_eval.errors import InputError
from defocus_eval.formats import cityscapes
from defocus_eval.formats.cityscapes import image_key
from defocus_eval.formats.files import image_size, read_label_map
from defocus_eval.formats.records import Predictions, Truth, TruthKind

CITYSCAPES_SUFFIX = "_gtFine_labelIds"
CITYSCAPES_TRAIN_SUFFIX = "_gtFine_labelTrainIds"
ADE20K_PREFIX = "ADE_"
ADE20K_CLASSES = 150


def read_truth_folder(path: Path, classes: Sequence[str] | None = None, ignore_label: int = 255) -> Truth:
    """Ground truth in a folder of PNGs, searched with its subfolders.

    Cityscapes is known by `*_gtFine_labelIds.png`, ADE20K by `ADE_*.png` (labels 1 to 150, 0 does not count).

    Args:
        path: The folder.
        classes: Names of labels 0, 1, …; of labels 1, 2, … for ADE20K.
        ignore_label: The label that does not count, where it is neither Cityscapes nor ADE20K.

    Raises:
        InputError: It holds no PNGs.
    """
    found = sorted(path.rglob("*.png"))
    if not found:
        raise InputError(f"{path} holds no PNG files; give the folder of the label maps of the ground truth")
    kind: TruthKind = "semantic"
    notes: tuple[str, ...] = ()
    not_counted: int | None = ignore_label
    frames = [file for file in found if file.stem.endswith(CITYSCAPES_SUFFIX)]
    if frames:
        kind, found, not_counted = "cityscapes", frames, None
        categories = {label.id: label.name for label in cityscapes.LABELS if label.counts}
    elif any(file.stem.endswith(CITYSCAPES_TRAIN_SUFFIX) for file in found):
        found = [file for file in found if file.stem.endswith(CITYSCAPES_TRAIN_SUFFIX)]
        categories = {label.train_id: label.name for label in cityscapes.LABELS if label.counts}
        not_counted = cityscapes.IGNORED
        notes = (f"{path} holds train ids of Cityscapes; its board scores label ids (*{CITYSCAPES_SUFFIX}.png)",)
    elif all(file.name.startswith(ADE20K_PREFIX) for file in found):
        kind, not_counted = "ade20k", 0
        names = classes or [str(label) for label in range(1, ADE20K_CLASSES + 1)]
        if len(names) != ADE20K_CLASSES:
            raise InputError(f"ADE20K has {ADE20K_CLASSES} classes, {len(names)} names were given; name each of them")
        categories = dict(enumerate(names, 1))
    else:
        categories = dict(enumerate(classes)) if classes else {}
    images, files = {}, {}
    for image_id, file in enumerate(found, 1):
        width, height = image_size(file)
        images[image_id] = {"id": image_id, "file_name": file.name, "width": width, "height": height}
        files[image_id] = file
    _images_by_key(images, path)
    data = {
        "images": list(images.values()),
        "categories": [{"id": label, "name": name} for label, name in categories.items()],
    }
    return Truth(kind, path, data, categories, images, path, files, not_counted, notes)


def read_prediction_folder(path: Path, truth: Truth) -> Predictions:
    """Predicted label maps in a folder of PNGs, one for each image of the ground truth, found by name.

    Raises:
        InputError: An image has no map, or two, or one of another size.
    """
    wanted = _images_by_key(truth.images, truth.path)
    files: dict[int, Path] = {}
    strangers = []
    for file in sorted(path.rglob("*.png")):
        image_id = wanted.get(image_key(file.stem))
        if image_id is None:
            strangers.append(file)
            continue
        if image_id in files:
            name = truth.images[image_id]["file_name"]
            raise InputError(f"{files[image_id]} and {file} both answer {name}; keep one of them")
        files[image_id] = file
    _refuse_missing(set(truth.images) - set(files), truth, f"{path} holds no PNG")
    for image_id, file in files.items():
        record = truth.images[image_id]
        if image_size(file) != (record["width"], record["height"]):
            width, height = image_size(file)
            raise InputError(
                f"{file} is {width}×{height}, its ground truth {record['width']}×{record['height']}; "
                "write predictions at the size of the ground truth"
            )
    notes: tuple[str, ...] = ()
    if strangers:
        notes = (f"{len(strangers)} PNGs belong to no image of the ground truth and were left out: {strangers[0]} …",)
    return Predictions(("semantic",), "mmseg", path, folder=path, files=files, notes=notes)


def read_prediction_masks(path: Path, content: list[dict], truth: Truth) -> Predictions:
    """Predicted masks of classes as Detectron2's `SemSegEvaluator` writes them to `sem_seg_predictions.json`.

    Raises:
        InputError: An entry has no mask or class, does not fit an image, or an image has none.
    """
    wanted = _images_by_key(truth.images, truth.path)
    entries = []
    for number, entry in enumerate(content, 1):
        where = f"{path}, entry {number}"
        mask = entry.get("segmentation")
        if not isinstance(mask, dict) or "counts" not in mask or "size" not in mask or "category_id" not in entry:
            raise InputError(f"{where} lacks category_id or a run-length code; give the file as Detectron2 wrote it")
        image_id = wanted.get(image_key(Path(entry["file_name"]).stem))
        if image_id is None:
            raise InputError(
                f"{where}: {entry['file_name']} belongs to no image of {truth.path}; give the ground truth that the "
                "predictions were made for"
            )
        record = truth.images[image_id]
        if list(mask["size"]) != [record["height"], record["width"]]:
            raise InputError(
                f"{where}: its mask is {mask['size'][1]}×{mask['size'][0]}, its image "
                f"{record['width']}×{record['height']}; write predictions at the size of the ground truth"
            )
        label = entry["category_id"]
        if not 0 <= label <= 255:
            raise InputError(f"{where}: category_id {label} does not lie between 0 and 255; write labels of the truth")
        entries.append({"image_id": image_id, "category_id": label, "segmentation": mask})
    _refuse_missing(set(truth.images) - {entry["image_id"] for entry in entries}, truth, f"{path} has no entry")
    return Predictions(
        ("semantic",),
        "detectron2",
        path,
        entries={"semantic": entries},
        numbers={"semantic": lambda index: f"{path}, entry {index + 1}"},
    )


def prediction_maps(predictions: Predictions, truth: Truth) -> Iterator[tuple[int, np.ndarray]]:
    """Image id and predicted label map, `(h, w)`, for each image in the order of the ground truth.

    Where Detectron2's masks leave a pixel free it is 255; where they overlap, the later one counts.

    Raises:
        InputError: A PNG is missing, broken, or has colours.
    """
    if predictions.files:
        for image_id in truth.images:
            yield image_id, read_label_map(predictions.files[image_id])
        return
    by_image: dict[int, list[dict]] = {}
    for entry in predictions.entries["semantic"]:
        by_image.setdefault(entry["image_id"], []).append(entry)
    for image_id, record in truth.images.items():
        labels = np.full((record["height"], record["width"]), 255, np.uint8)
        for entry in by_image[image_id]:
            labels[coco_mask.decode(entry["segmentation"]).astype(bool)] = entry["category_id"]
        yield image_id, labels


def _images_by_key(images: Mapping[int, dict], path: Path) -> dict[str, int]:
    """Image id by the part of its name that predictions share."""
    found: dict[str, int] = {}
    for image_id, record in images.items():
        key = image_key(Path(record["file_name"]).stem)
        if key in found:
            raise InputError(f"{path} holds two files for {key}; keep one of them")
        found[key] = image_id
    return found


def _refuse_missing(missing: set[int], truth: Truth, what: str) -> None:
    if missing:
        name = truth.images[min(missing)]["file_name"]
        raise InputError(f"{what} for {len(missing)} of {len(truth.images)} images, the first {name}; predict them all")
