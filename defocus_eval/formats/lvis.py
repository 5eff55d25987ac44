"""LVIS: COCO instances whose images also say which classes were looked for, and how completely.

Source: the paper (arXiv 1908.03195) and lvis-api (github.com/lvis-dataset/lvis-api).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from defocus_eval.errors import InputError
from defocus_eval.formats.records import Truth

IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")


def is_lvis(content: dict) -> bool:
    """Some image says which classes were looked for."""
    return any(key in image for image in content["images"] for key in IMAGE_KEYS)


def read_lvis_truth(path: Path, content: dict, truth: Truth) -> Truth:
    """Ground truth, given as instances.

    Raises:
        InputError: An image lacks its classes, or a category its frequency.
    """
    for number, image in enumerate(content["images"], 1):
        absent = [key for key in IMAGE_KEYS if not isinstance(image.get(key), list)]
        if absent:
            raise InputError(f"{path}, image {number} has no list {absent[0]}; give the annotations as LVIS has them")
        # LVIS names its images by their address in COCO alone.
        image.setdefault("file_name", "/".join(PurePosixPath(image.get("coco_url", "")).parts[-2:]))
    for number, category in enumerate(content["categories"], 1):
        if category.get("frequency") not in FREQUENCIES:
            raise InputError(
                f"{path}, category {number} ({category['name']}) has no frequency r, c or f; "
                "give the annotations as LVIS has them"
            )
    return Truth("lvis", path, content, truth.categories, truth.images, notes=truth.notes)
