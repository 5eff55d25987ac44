"""Reading JSON, finding folders of PNGs; every failure is an `InputError` with its cure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from defocus_eval.errors import InputError


def read_json(path: Path, cure: str) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: The file is missing, empty, not text, or not JSON.
    """
    if path.suffix in (".pkl", ".pth", ".pickle"):
        raise InputError(
            f"{path} is a pickle of a trainer's own objects; {cure} (mmdet: test_evaluator.outfile_prefix, "
            "Detectron2: coco_instances_results.json of its inference folder)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {cure}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; {cure}") from error
    if not text.strip():
        raise InputError(f"{path} is empty; {cure}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not a JSON file ({error}); {cure}") from error


def find_folder(candidates: Iterable[Path], file_name: str, what: str, cure: str) -> Path:
    """The first folder that holds ``file_name``.

    Raises:
        InputError: None does.
    """
    tried = []
    for folder in candidates:
        if (folder / file_name).is_file():
            return folder
        tried.append(str(folder))
    raise InputError(f"{what}: {file_name} lies in none of {', '.join(dict.fromkeys(tried))}; {cure}")


def read_label_map(path: Path) -> np.ndarray:
    """A PNG of one number a pixel, `(h, w)`, uint8 or int32.

    Raises:
        InputError: The file is missing or no picture, or has colours.
    """
    picture = _open(path)
    if picture.mode not in ("L", "P", "I", "I;16", "I;16B", "1"):
        raise InputError(
            f"{path} is a picture of mode {picture.mode}, not a map of labels; write one number a pixel (mode L)"
        )
    labels = np.asarray(picture)
    return labels.astype(np.uint8 if picture.mode in ("L", "P", "1") else np.int32, copy=False)


def read_segment_ids(path: Path) -> np.ndarray:
    """A panoptic PNG as ids, red + 256·green + 256²·blue, `(h, w)` uint32.

    Raises:
        InputError: The file is missing or no picture, or has no colours.
    """
    picture = _open(path)
    if picture.mode not in ("RGB", "RGBA"):
        raise InputError(
            f"{path} is a picture of mode {picture.mode}; a panoptic PNG is RGB, its id red + 256·green + 65536·blue"
        )
    red, green, blue = np.moveaxis(np.asarray(picture)[..., :3].astype(np.uint32), -1, 0)
    return red + 256 * green + 65536 * blue


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header alone.

    Raises:
        InputError: The file is missing or no picture.
    """
    with _open(path, load=False) as picture:
        return picture.size


def _open(path: Path, load: bool = True) -> Image.Image:
    try:
        picture = Image.open(path)
        if load:
            # Closes the file.
            picture.load()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the folder that holds every file of the set") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); write the file again") from error
    return picture
