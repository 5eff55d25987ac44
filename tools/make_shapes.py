"""Draws a small synthetic data set for detection and for instance, semantic and panoptic segmentation.

Each image shows 2 to 7 shapes of six classes on a textured background. Colour, texture, size and rotation are
drawn independently of the class, so that only the outline tells the classes apart. Annotations describe what
is visible: where shapes overlap, the pixel belongs to the upper one.

    OUT/settings.json                          what the set was drawn with; written last
    OUT/{train,val}/000001.jpg                 images; the long side is --size, the short one 0.7 to 1.0 of it
    OUT/annotations/instances_{train,val}.json COCO instances; polygons that follow the pixel edges exactly
    OUT/annotations/panoptic_{train,val}.json  COCO panoptic; the shapes are things, the background is stuff
    OUT/panoptic/{train,val}/000001.png        segment ids as red + 256·green + 256²·blue
    OUT/semantic/{train,val}/000001.png        one byte a pixel: 0 background, 1 to 6 the shapes (for mmseg)

Category ids are 1 to 6 in the order of `SHAPES`; in the panoptic file the background follows as 7, because
mmdet wants things before stuff. Image k of a split depends on (seed, split, k, size) alone: a larger set
begins with the images of a smaller one.

Example:
    python tools/make_shapes.py data/shapes --train 1500 --val 150 --size 192
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
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
SPLITS = ("train", "val")
# A set drawn by another version of this file is not reused.
VERSION = 2

MIN_SIZE = 32
MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_DIAMETER = 10
# Radians either way: things in photographs stand upright, more or less.
MOST_ROTATION = np.pi / 7
# A shape must keep this share of its area, and this many pixels, under image borders and other shapes.
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS = 0.65, 24
SUPERSAMPLING = 4
JPEG_QUALITY = 92
LICENSE_URL = "https://creativecommons.org/publicdomain/zero/1.0/"


class Sample(NamedTuple):
    """One drawn image.

    Attributes:
        image: Pixels, `(h, w, 3)` uint8, BGR.
        instance_map: `(h, w)` uint8; 0 is background, i the i-th instance.
        category_ids: Category of each instance, 1 to 6.
    """

    image: np.ndarray
    instance_map: np.ndarray
    category_ids: list[int]


def make_shapes(
    out_dir: str | Path,
    train: int = 1500,
    val: int = 150,
    size: int = 192,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Draws the data set, or keeps the one that is there if it was drawn with the same settings.

    Everything is drawn into a sibling folder that takes the name `out_dir` at the very end, so an interrupted
    run leaves no half-made set.

    Args:
        out_dir: Folder to make.
        train: Number of training images.
        val: Number of validation images.
        size: Long side of the images in pixels, at least 32.
        seed: Non-negative seed.
        workers: Number of processes. The result does not depend on it. More than one needs this module to be
            importable by name, and a main program under `if __name__ == "__main__"`.
        overwrite: Replace a set that was drawn with other settings.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: An argument is out of range, or `out_dir` is a file.
        FileExistsError: `out_dir` holds something else than this very set.
    """
    out_dir = Path(out_dir)
    for name, value, least in (
        ("train", train, 0),
        ("val", val, 0),
        ("size", size, MIN_SIZE),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file; give a folder to draw into")

    settings = {"tool": "make_shapes", "version": VERSION}
    settings |= {"train": train, "val": val, "size": size, "seed": seed}
    if _is_reusable(out_dir, settings, overwrite):
        print(f"{out_dir} already holds this data set; nothing to draw")
        return out_dir

    target = out_dir.resolve()
    partial_dir = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial_dir, ignore_errors=True)
    try:
        with _start_pool(workers) if workers > 1 else nullcontext() as pool:
            for split, count in zip(SPLITS, (train, val)):
                _write_split(partial_dir, split, count, size, seed, pool)
        (partial_dir / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        if target.exists():
            replaced = partial_dir.with_name(f"{partial_dir.name}-replaced")
            target.rename(replaced)
            partial_dir.rename(target)
            shutil.rmtree(replaced)
        else:
            partial_dir.rename(target)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
    print(f"drew {train} training and {val} validation images into {out_dir}")
    return out_dir


def _start_pool(workers: int) -> Pool:
    # Spawned, because OpenCV's own threads do not survive a fork; deaf to Ctrl-C, left to the main process.
    return multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _is_reusable(out_dir: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `out_dir` holds the set of `settings`; raises if it holds what may not be replaced."""
    if not out_dir.exists() or not any(out_dir.iterdir()):
        return False
    try:
        found = json.loads((out_dir / "settings.json").read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("tool") != settings["tool"]:
        raise FileExistsError(
            f"{out_dir} is not empty and was not made by this tool (it lacks its settings.json); give another folder"
        )
    if overwrite and found != settings:
        return False
    if found != settings:
        changes = ", ".join(
            f"{key} {found.get(key)} -> {value}" for key, value in settings.items() if found.get(key) != value
        )
        raise FileExistsError(
            f"{out_dir} was drawn with other settings ({changes}); pass --overwrite (overwrite=True) to "
            "replace it, or give another folder"
        )
    missing = [path for path in _expected_files(out_dir, settings) if not path.exists()]
    if missing and not overwrite:
        raise FileExistsError(
            f"{out_dir} lacks {len(missing)} of its files, {missing[0]} among them; pass --overwrite "
            "(overwrite=True) to draw it again"
        )
    return not missing


def _expected_files(out_dir: Path, settings: dict) -> Iterator[Path]:
    for split in SPLITS:
        for kind in ("instances", "panoptic"):
            yield out_dir / "annotations" / f"{kind}_{split}.json"
        for index in range(1, settings[split] + 1):
            yield from _image_files(out_dir, split, index)


def _image_files(root: Path, split: str, index: int) -> tuple[Path, Path, Path]:
    """Image, semantic map and panoptic map of one image."""
    return (
        root / split / f"{index:06d}.jpg",
        root / "semantic" / split / f"{index:06d}.png",
        root / "panoptic" / split / f"{index:06d}.png",
    )


def _write_split(root: Path, split: str, count: int, size: int, seed: int, pool: Pool | None) -> None:
    for folder in (root / split, root / "semantic" / split, root / "panoptic" / split, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    write_image = partial(_write_image, root, split, size, seed)
    indices = range(1, count + 1)
    records = pool.imap(write_image, indices, chunksize=8) if pool else map(write_image, indices)
    images, annotations, panoptic = [], [], []
    for image, instances, segments in _with_progress(records, count, split):
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


def _with_progress(items: Iterable, total: int, label: str) -> Iterator:
    if tqdm is not None:
        yield from tqdm(items, total=total, desc=label, unit="img")
        return
    step = max(1, total // 10)
    for done, item in enumerate(items, 1):
        yield item
        if done % step == 0 or done == total:
            print(f"{label}: {done}/{total} images", flush=True)


def _write_image(root: Path, split: str, size: int, seed: int, index: int) -> tuple[dict, list[dict], dict]:
    """Draws image `index` and writes its three files.

    Returns:
        The image record, the instance annotations without their ids, and the panoptic annotation.
    """
    sample = draw_sample(split, index, size, seed)
    height, width = sample.instance_map.shape
    image_path, semantic_path, panoptic_path = _image_files(root, split, index)

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
            instances.append({"image_id": index, **record, "segmentation": _outlines(mask, box)})
    image = {"id": index, "file_name": image_path.name, "width": width, "height": height, "license": 1}
    return image, instances, {"image_id": index, "file_name": panoptic_path.name, "segments_info": segments}


def _imwrite(path: Path, pixels: np.ndarray, flags: list[int] | None = None) -> None:
    # cv2.imwrite returns False on a full disk and cannot take every path; encoding first has neither trouble.
    _, encoded = cv2.imencode(path.suffix, pixels, flags or [])
    path.write_bytes(encoded.tobytes())


def _outlines(mask: np.ndarray, box: list[int]) -> list[list[int]]:
    """Polygons along the pixel edges of a mask, which rasterise to exactly that mask.

    A polygon in COCO form cannot say "hole", so each hole is joined to its outline by a cut of no width.

    Args:
        mask: `(h, w)` bool.
        box: x, y, width and height of the mask.

    Returns:
        One flat `[x0, y0, x1, y1, …]` for each connected part.
    """
    x, y, width, height = box
    # Contours run through pixel centres. In a picture three times as large those of the border pixels tell by
    # their rest modulo three on which side the edge is: 3i → i, 3i + 2 → i + 1.
    enlarged = mask[y : y + height, x : x + width].astype(np.uint8).repeat(3, 0).repeat(3, 1)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corners = []
    for contour in contours:
        points = (contour.reshape(-1, 2) + 1) // 3
        corners.append(points[(points != np.roll(points, 1, 0)).any(1)] + (x, y))

    polygons = []
    for outline, (_, _, child, parent) in zip(corners, hierarchy.reshape(-1, 4)):
        if parent >= 0:
            continue
        hole = child
        while hole >= 0:
            outline = _join(outline, corners[hole])
            hole = hierarchy.reshape(-1, 4)[hole][0]
        polygons.append(outline.reshape(-1).tolist())
    return polygons


def _join(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One closed line through both `(n, 2)` lines, which runs twice along the shortest way between them."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    return np.concatenate([outline[: i + 1], hole[j:], hole[: j + 1], outline[i:]])


def draw_sample(split: str, index: int, size: int, seed: int) -> Sample:
    """Draws one image.

    Args:
        split: "train" or "val".
        index: Number of the image within its split.
        size: Long side in pixels.
        seed: Seed of the data set.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    short = round(size * rng.uniform(0.7, 1.0))
    height, width = (short, size) if rng.random() < 0.5 else (size, short)

    canvas = _draw_background(rng, height, width)
    instance_map = np.zeros((height, width), np.uint8)
    category_ids, full_areas = [], []
    wanted = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    attempts = 0
    while len(category_ids) < wanted and (attempts < 10 * wanted or len(category_ids) < MIN_OBJECTS):
        attempts += 1
        category_id = int(rng.integers(1, len(SHAPES) + 1))
        coverage, top, left = _draw_coverage(rng, SHAPES[category_id - 1], height, width)
        full_area = np.count_nonzero(coverage >= 128)
        rows = slice(max(0, -top), min(coverage.shape[0], height - top))
        columns = slice(max(0, -left), min(coverage.shape[1], width - left))
        here = (slice(rows.start + top, rows.stop + top), slice(columns.start + left, columns.stop + left))
        coverage = coverage[rows, columns]

        drawn_map = instance_map.copy()
        drawn_map[here][coverage >= 128] = len(category_ids) + 1
        visible = np.bincount(drawn_map.reshape(-1), minlength=len(category_ids) + 2)[1:]
        needed = np.maximum(MIN_VISIBLE_SHARE * np.array([*full_areas, full_area]), MIN_VISIBLE_PIXELS)
        if (visible < needed).any():
            continue
        instance_map = drawn_map
        category_ids.append(category_id)
        full_areas.append(full_area)
        fill = _draw_fill(rng, canvas[here], coverage)
        canvas[here] += (fill - canvas[here]) * (coverage[..., None] / np.float32(255))

    canvas += rng.normal(0, rng.uniform(1, 6), (height, width, 1)).astype(np.float32)
    return Sample(np.clip(canvas, 0, 255).astype(np.uint8), instance_map, category_ids)


def _shape_outline(shape: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Lines of a shape, each `(n, 2)`, within the unit circle; the inside is where their parity is odd."""
    if shape == "circle":
        return [_regular_polygon(64)]
    if shape == "ring":
        return [_regular_polygon(64), _regular_polygon(64) * rng.uniform(0.5, 0.62)]
    if shape == "square":
        return [_regular_polygon(4)]
    if shape == "triangle":
        return [_regular_polygon(3)]
    if shape == "star":
        star = _regular_polygon(10)
        star[1::2] *= rng.uniform(0.38, 0.46)
        return [star]
    arm = rng.uniform(0.26, 0.34)
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    cross = np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    return [cross / np.hypot(1, arm)]


def _regular_polygon(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _draw_coverage(rng: np.random.Generator, shape: str, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Draws a shape of random size, place and rotation.

    Returns:
        How far each pixel of a window is covered, 0 to 255, and the window's top and left in the image.
    """
    long_side = max(height, width)
    least, most = max(MIN_DIAMETER, long_side / 14), long_side * 0.6
    diameter = least * (most / least) ** (rng.random() ** 0.5)
    angle = rng.uniform(-MOST_ROTATION, MOST_ROTATION)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.array([1, rng.uniform(0.85, 1)])
    centre = rng.uniform((0, 0), (width, height))

    lines = [line * stretch @ rotation * (diameter / 2) + centre for line in _shape_outline(shape, rng)]
    left, top = np.floor(lines[0].min(0)).astype(int)
    right, bottom = np.ceil(lines[0].max(0)).astype(int)
    canvas = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    fixed_point_bits = 8
    # OpenCV puts whole numbers on pixel centres, we on pixel edges: hence the half.
    lines = [((line - (left, top)) * SUPERSAMPLING - 0.5) * 2**fixed_point_bits for line in lines]
    cv2.fillPoly(canvas, [line.round().astype(np.int32) for line in lines], 255, shift=fixed_point_bits)
    return cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA), int(top), int(left)


def _draw_fill(rng: np.random.Generator, under: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Paints a window in two like colours that stand out from what lies under the shape.

    Args:
        rng: Source of randomness.
        under: What is there, `(h, w, 3)`.
        coverage: How far the shape covers each pixel, `(h, w)`.

    Returns:
        `(h, w, 3)` float32.
    """
    edge = under[(coverage > 0) & (coverage < 255)]
    first = rng.uniform(15, 240, (12, 3))
    direction = rng.normal(size=(12, 3))
    second = first + direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(30, 70)
    colors = np.clip(np.stack([first, second]), 0, 255).astype(np.float32)
    # JPEG keeps brightness more sharply than hue, so brightness counts twice.
    difference = colors[:, :, None] - edge
    distance = np.sqrt((difference**2).mean(-1) + difference.mean(-1) ** 2)
    contrast = np.quantile(distance, 0.2, axis=-1).min(0)
    good = np.flatnonzero(contrast > 55)
    chosen = good[0] if len(good) else contrast.argmax()

    height, width = coverage.shape
    kind = rng.choice(["flat", "gradient", "stripes", "checker", "noise"])
    if kind == "flat":
        mix = np.zeros((height, width), np.float32)
    elif kind == "noise":
        mix = _smooth_noise(rng, height, width, rng.uniform(3, 6))
    else:
        mix = _pattern(rng, kind, height, width, max(5.0, max(height, width) / rng.uniform(3, 6)))
    return _blend(colors[0, chosen], colors[1, chosen], mix)


def _draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = rng.uniform(30, 225, 3)
    canvas = _blend(base, base + rng.normal(0, 35, 3), _pattern(rng, "gradient", height, width, 1.0))
    kind = rng.choice(["plain", "noise", "stripes", "checker", "lines"])
    long_side = max(height, width)
    if kind == "noise":
        mix = _smooth_noise(rng, height, width, rng.uniform(3, long_side / 6))
        canvas += _blend(np.zeros(3), rng.normal(0, 25, 3), mix)
    elif kind in ("stripes", "checker"):
        mix = _pattern(rng, kind, height, width, rng.uniform(8, long_side / 4))
        canvas += _blend(np.zeros(3), rng.normal(0, 14, 3), mix)
    elif kind == "lines":
        for _ in range(rng.integers(6, 16)):
            ends = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height) * 16
            color = np.clip(base + rng.normal(0, 18, 3), 0, 255)
            thickness = int(rng.integers(1, 3))
            start, end = ends.astype(int).tolist()
            cv2.line(canvas, start, end, color.tolist(), thickness, cv2.LINE_8, shift=4)
        canvas = cv2.GaussianBlur(canvas, (0, 0), 0.7)
    return np.clip(canvas, 0, 255)


def _pattern(rng: np.random.Generator, kind: str, height: int, width: int, period: float) -> np.ndarray:
    """A turned "gradient", "stripes" or "checker" from 0 to 1, `(h, w)` float32; `period` is in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    u = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if kind == "gradient":
        return (u - u.min()) / max(u.max() - u.min(), 1)
    frequency = np.float32(2 * np.pi / period)
    wave = np.sin(u * frequency + np.float32(rng.uniform(0, 2 * np.pi)))
    if kind == "checker":
        v = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
        wave = wave * np.sin(v * frequency)
    # The steep sine is a square wave with soft edges.
    return np.clip(0.5 + 2 * wave, 0, 1)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, grain: float) -> np.ndarray:
    """Noise between 0 and 1 with spots of about `grain` pixels, `(h, w)` float32."""
    grid = rng.random((max(2, round(height / grain)), max(2, round(width / grain))), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _blend(first: np.ndarray, second: np.ndarray, mix: np.ndarray) -> np.ndarray:
    first, second = first.astype(np.float32), second.astype(np.float32)
    return first + (second - first) * mix[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a synthetic COCO data set of shapes.")
    parser.add_argument("out_dir", type=Path, help="folder to make; an equal set that is there is kept")
    parser.add_argument("--train", type=int, default=1500, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=150, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=192, help="long side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a set drawn with other settings")
    arguments = parser.parse_args()
    # A killed run tidies up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        make_shapes(**vars(arguments))
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
