"""The files of a split: images, semantic and panoptic maps, and COCO's two kinds of annotations."""

import json
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import cv2
import numpy as np

from defocus_commands.shapes.polygons import outlines
from defocus_commands.shapes.scene import SHAPES, draw_sample
from defocus_eval.progress import with_progress

# A set drawn by another version is not reused.
VERSION = 2
BACKGROUND_ID = len(SHAPES) + 1
# How viewers of panoptic results paint each category, background last: red, green, blue.
COLORS = (
    [230, 90, 70],
    [70, 130, 230],
    [80, 190, 90],
    [240, 190, 50],
    [170, 90, 210],
    [60, 200, 200],
    [90, 90, 90],
)
JPEG_QUALITY = 92
LICENSE_URL = "https://creativecommons.org/publicdomain/zero/1.0/"


def image_files(root: Path, split: str, index: int) -> tuple[Path, Path, Path]:
    """Image, semantic map and panoptic map of one image."""
    return (
        root / split / f"{index:06d}.jpg",
        root / "semantic" / split / f"{index:06d}.png",
        root / "panoptic" / split / f"{index:06d}.png",
    )


def write_split(root: Path, split: str, count: int, size: int, seed: int, pool: Pool | None) -> None:
    """Draws the images of a split and writes all of its files, the annotations last.

    Args:
        root: Folder of the set.
        split: "train" or "val".
        count: Number of images.
        size: Long side of the images in pixels.
        seed: Of the set.
        pool: Processes that draw; None draws in this one.
    """
    for folder in (root / split, root / "semantic" / split, root / "panoptic" / split, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    write_image = partial(_write_image, root, split, size, seed)
    indices = range(1, count + 1)
    records = pool.imap(write_image, indices, chunksize=8) if pool else map(write_image, indices)
    images: list[dict] = []
    annotations: list[dict] = []
    panoptic: list[dict] = []
    for image, instances, segments in with_progress(records, count, split):
        images.append(image)
        annotations.extend({"id": i, **record} for i, record in enumerate(instances, len(annotations) + 1))
        panoptic.append(segments)

    header = {
        "info": {
            "description": f"Synthetic shapes, {split} split, long side {size}, seed {seed}",
            "version": str(VERSION),
        },
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": LICENSE_URL}],
        "images": images,
    }
    shapes = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES, 1)]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "background"}
    panoptic_categories = [
        {**category, "isthing": int(category is not background), "color": color}
        for category, color in zip([*shapes, background], COLORS)
    ]
    _write_json(
        root / "annotations" / f"instances_{split}.json",
        {**header, "annotations": annotations, "categories": shapes},
    )
    _write_json(
        root / "annotations" / f"panoptic_{split}.json",
        {**header, "annotations": panoptic, "categories": panoptic_categories},
    )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))


def _write_image(root: Path, split: str, size: int, seed: int, index: int) -> tuple[dict, list[dict], dict]:
    """Draws image `index` and writes its three files.

    Returns:
        The image record, the instance annotations without their ids, and the panoptic annotation.
    """
    sample = draw_sample(split, index, size, seed)
    height, width = sample.instance_map.shape
    image_path, semantic_path, panoptic_path = image_files(root, split, index)

    categories = np.array([0, *sample.category_ids], np.uint8)
    # An odd factor permutes the 24-bit numbers: ids stay distinct, and neighbours look different.
    segment_ids = np.arange(1, len(categories) + 1, dtype=np.int64) * 0x9E3779B1 & 0xFFFFFF
    blue_green_red = (segment_ids[:, None] >> np.array([16, 8, 0]) & 255).astype(np.uint8)
    _imwrite(image_path, sample.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    _imwrite(semantic_path, categories[sample.instance_map])
    _imwrite(panoptic_path, blue_green_red[sample.instance_map])

    instances, segments = [], []
    for value, segment_id in enumerate(segment_ids.tolist()):
        mask = sample.instance_map == value
        box = [int(v) for v in cv2.boundingRect(mask.view(np.uint8))]
        area = int(np.count_nonzero(mask))
        category_id = int(categories[value]) or BACKGROUND_ID
        record = {"category_id": category_id, "bbox": box, "area": area, "iscrowd": 0}
        segments.append({"id": segment_id, **record})
        if value:
            instances.append({"image_id": index, **record, "segmentation": outlines(mask, box)})
    image = {"id": index, "file_name": image_path.name, "width": width, "height": height, "license": 1}
    return image, instances, {"image_id": index, "file_name": panoptic_path.name, "segments_info": segments}


def _imwrite(path: Path, pixels: np.ndarray, flags: list[int] | None = None) -> None:
    # cv2.imwrite returns False on a full disk and cannot take every path; encoding first has neither trouble.
    _, encoded = cv2.imencode(path.suffix, pixels, flags or [])
    path.write_bytes(encoded.tobytes())
