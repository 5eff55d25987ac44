"""Pictures for a page: images made small enough to embed, and label maps as pictures to lay over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from defocus_eval.errors import InputError
from defocus_eval.formats.cityscapes import image_key
from defocus_eval.pages.palette import Color

JPEG_QUALITY = 82
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
WRONG: Color = (214, 39, 40)
RIM: Color = (20, 20, 24)


def find_images(folder: Path, records: Mapping[int, dict]) -> dict[int, Path]:
    """File of each image, by id.

    It is `folder/file_name` as COCO has it. Label maps are named like their images but for the suffix (and Cityscapes'
    endings): there the folder is searched with its subfolders.

    Raises:
        InputError: The folder does not exist, or an image is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; --images must be the folder of the images")
    found = {image_id: folder / record["file_name"] for image_id, record in records.items()}
    if all(path.suffix.lower() != ".png" and path.is_file() for path in found.values()):
        return found
    by_key = {image_key(path.stem): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES}
    for image_id, record in records.items():
        path = by_key.get(image_key(Path(record["file_name"]).stem))
        if path is None:
            raise InputError(
                f"{folder} holds no image for {record['file_name']}; --images must be the folder that it starts from"
            )
        found[image_id] = path
    return found


def read_small(path: Path, longest: int) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """An image as JPEG in base64, no side longer than ``longest``; its width and height now, and as it was.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            original = image.size
            # Reads a large JPEG at half or a quarter of its size at once.
            image.draft("RGB", (longest, longest))
            small = image.convert("RGB")
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error}); replace the file") from error
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode(), small.size, original


def shrink_mask(code: dict, size: tuple[int, int]) -> str:
    """Counts of a compressed run-length code at another width and height."""
    if tuple(code["size"]) == (size[1], size[0]):
        counts = code["counts"]
        return counts if isinstance(counts, str) else counts.decode()
    small = Image.fromarray(coco_mask.decode(code)).resize(size, Image.Resampling.NEAREST)
    return coco_mask.encode(np.asfortranarray(small))["counts"].decode()


def label_picture(labels: np.ndarray, colors: Mapping[int, Color], size: tuple[int, int]) -> str:
    """A label map, `(h, w)`, as PNG of ``size``, (width, height), in base64; what has no colour is transparent."""
    present = [int(label) for label in np.unique(labels) if int(label) in colors]
    indices = np.full(labels.shape, len(present), np.uint8)
    for index, label in enumerate(present):
        indices[labels == label] = index
    return _palette_png(indices, [colors[label] for label in present], size)


def wrong_picture(truth: np.ndarray, labels: np.ndarray, counted: Iterable[int], size: tuple[int, int]) -> str:
    """The pixels of counted labels that are taken for another, as PNG in base64.

    Args:
        truth: True labels, `(h, w)`.
        labels: Predicted labels, `(h, w)`.
        counted: The labels that count.
        size: Width and height of the picture.
    """
    wrong = np.isin(truth, list(counted)) & (truth != labels)
    return _palette_png(np.where(wrong, 0, 1).astype(np.uint8), [WRONG], size)


def segment_picture(
    segments: np.ndarray, categories: Mapping[int, int], colors: Mapping[int, Color], size: tuple[int, int]
) -> str:
    """Segments, `(h, w)` of ids, as PNG in base64: coloured by category, each with a dark rim.

    Args:
        segments: Id of a segment at each pixel.
        categories: Category by id of a segment; other ids are transparent.
        colors: By category.
        size: Width and height of the picture.
    """
    small = np.asarray(Image.fromarray(segments.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    present = sorted(set(categories.values()))
    palette = [colors[category] for category in present] + [RIM]
    nothing = len(palette)
    indices = np.full(small.shape, nothing, np.uint8)
    for segment, category in categories.items():
        indices[small == segment] = present.index(category)
    rim = np.zeros(small.shape, bool)
    rim[:, 1:] |= small[:, 1:] != small[:, :-1]
    rim[1:] |= small[1:] != small[:-1]
    indices[rim & (indices != nothing)] = len(present)
    return _palette_png(indices, palette, size)


def _palette_png(indices: np.ndarray, palette: list[Color], size: tuple[int, int]) -> str:
    """PNG of a map of rows of the palette; the row after the last one is transparent."""
    picture = Image.fromarray(indices).resize(size, Image.Resampling.NEAREST)
    picture.putpalette(bytes(value for color in (*palette, (0, 0, 0)) for value in color))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=len(palette), optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
