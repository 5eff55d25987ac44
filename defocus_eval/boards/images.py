"""The images that a board wants answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from defocus_eval.boards.content import Request
from defocus_eval.boards.rules import Board
from defocus_eval.errors import InputError
from defocus_eval.formats import Truth, read_truth
from defocus_eval.formats.cityscapes import frame_of
from defocus_eval.formats.coco import check_lists
from defocus_eval.formats.files import image_size, read_json
from defocus_eval.formats.records import TruthKind

_PHOTOGRAPHS = ("*.jpg", "*.jpeg", "*.JPEG", "*_leftImg8bit.png")
_KINDS = {
    "detections": ("instances", "lvis", "images"),
    "panoptic": ("panoptic", "images"),
    "label maps": ("ade20k", "cityscapes", "semantic"),
    "cityscapes instances": ("cityscapes", "semantic"),
}


def wanted_images(request: Request) -> Truth:
    """The images to answer, with sizes and categories; of a rehearsal, with ground truth.

    Raises:
        InputError: The file or folder is missing or of another kind, or lists another number of images than the board
            has; a size, a category's `isthing` or, for a rehearsal, the ground truth is missing.
    """
    board = request.board
    truth = _read(request.images, board)
    if truth.kind not in _KINDS[board.kind]:
        raise InputError(
            f"{request.images} is of kind {truth.kind}, {board.name} takes {board.kind}; give the images of its split "
            f"{request.split}"
        )
    if request.categories is not None:
        truth = _with_categories(truth, request.categories)
    if board.kind in ("detections", "panoptic"):
        _check_sizes(request.images, truth.images)
    if board.kind == "panoptic":
        _check_things(truth)
    if request.rehearsal:
        if truth.kind == "images" or _photographs(request.images):
            raise InputError(
                f"{request.images} has no ground truth to rehearse on; give that of {board.rehearsal}, and predictions "
                "of it"
            )
    elif board.images is not None and len(truth.images) != board.images:
        raise InputError(
            f"{request.images} lists {len(truth.images):,} images, {board.name} wants the {board.images:,} of "
            f"{board.split}; give the board's own list, or rehearse on another with --rehearse"
        )
    if board.size is not None:
        _check_frames(truth, None if request.rehearsal else board.size)
    return truth


def known_to_be_empty(names: Sequence[str], images: Mapping[int, dict], path: Path) -> set[int]:
    """Ids of the images that ``names`` means; "all" means every one.

    Raises:
        InputError: A name is neither an id nor a file name of the images.
    """
    if "all" in names:
        return set(images)
    ids = {str(image_id): image_id for image_id in images}
    files = {Path(record.get("file_name", "")).name: image_id for image_id, record in images.items()}
    found = set()
    for name in names:
        image_id = ids.get(name, files.get(name))
        if image_id is None:
            raise InputError(
                f"{name} is said to be empty, but is neither id nor file name in {path}; correct --known-empty"
            )
        found.add(image_id)
    return found


def _read(path: Path, board: Board) -> Truth:
    photographs = _photographs(path)
    if not photographs:
        return read_truth(path)
    images, files = {}, {}
    for image_id, file in enumerate(photographs, 1):
        width, height = image_size(file)
        images[image_id] = {"id": image_id, "file_name": file.name, "width": width, "height": height}
        files[image_id] = file
    kinds: dict[str, TruthKind] = {"ade20k": "ade20k", "cityscapes": "cityscapes"}
    kind = kinds.get(board.name, "semantic")
    return Truth(kind, path, {"images": list(images.values()), "categories": []}, {}, images, path, files)


def _photographs(path: Path) -> list[Path]:
    """Images in a folder, not label maps."""
    return sorted(file for pattern in _PHOTOGRAPHS for file in path.rglob(pattern)) if path.is_dir() else []


def _with_categories(truth: Truth, path: Path) -> Truth:
    cure = "give a JSON with the board's categories, such as the annotations of its validation split"
    content = read_json(path, cure)
    # Its images do not matter.
    check_lists(path, {"images": truth.data["images"], **content} if isinstance(content, dict) else content, cure)
    categories = content["categories"]
    return replace(
        truth,
        data={**truth.data, "categories": categories},
        categories={category["id"]: category["name"] for category in categories},
    )


def _check_sizes(path: Path, images: Mapping[int, dict]) -> None:
    for number, record in enumerate(images.values(), 1):
        if not all(type(record.get(key)) is int and record[key] > 0 for key in ("width", "height")):
            raise InputError(
                f"{path}, image {number} (id {record['id']}) has no width and height in whole pixels; give the image "
                "list as the board publishes it"
            )


def _check_things(truth: Truth) -> None:
    for number, category in enumerate(truth.data["categories"], 1):
        if "isthing" not in category:
            raise InputError(
                f"{truth.path}, category {number} ({category['name']}) has no isthing: it lists categories of objects, "
                "not those of the panoptic task; give these with --categories panoptic_val2017.json"
            )


def _check_frames(truth: Truth, size: tuple[int, int] | None) -> None:
    for image_id, record in truth.images.items():
        file = truth.files[image_id]
        if frame_of(Path(record["file_name"]).stem) is None:
            raise InputError(
                f"{file} is not named <city>_<6 digits>_<6 digits>…, as Cityscapes names images; give its own folder"
            )
        if size is not None and (record["width"], record["height"]) != size:
            raise InputError(
                f"{file} is {record['width']}×{record['height']}, images of Cityscapes are {size[0]}×{size[1]}; give "
                "its own folder"
            )
