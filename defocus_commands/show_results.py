"""Draws what a detector found beside what is there, and how its training went.

    OUT/predictions.png   for some images, ground truth on the left and predictions on the right
    OUT/curves.png        with --log: loss over iterations, average precision over epochs or iterations

Example:
    defocus show-results \\
        --annotations data/shapes/annotations/instances_val.json --images data/shapes/val \\
        --predictions work_dirs/demo/val.bbox.json --log work_dirs/demo/*/vis_data/scalars.json \\
        --out work_dirs/demo
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from defocus_eval.drawing import (
    DPI,
    OBJECT_COLORS,
    TITLE_STYLE,
    DrawnObject,
    box_of_mask,
    decode_mask,
    draw_curves,
    draw_objects,
    read_image,
)
from defocus_eval.errors import InputError
from defocus_eval.formats.coco import check_lists
from defocus_eval.formats.files import read_json
from defocus_eval.logs import read_logs

LONGEST_NAME = 24


class Pair(NamedTuple):
    """An image with what is there and what was found.

    Attributes:
        name: Of the file, short enough for a heading.
        picture: `(h, w, 3)` uint8.
        truth: COCO annotations.
        found: COCO results above the threshold, the best first.
        best: The best score there is, above the threshold or not.
    """

    name: str
    picture: np.ndarray
    truth: list[dict]
    found: list[dict]
    best: float


def show_results(
    annotations: str | Path,
    images: str | Path,
    predictions: str | Path,
    out: str | Path,
    logs: Sequence[str | Path] = (),
    score_threshold: float = 0.4,
    max_images: int = 12,
) -> list[Path]:
    """Draws the pictures.

    Args:
        annotations: Ground truth, COCO instances format.
        images: Folder of the images that `annotations` names.
        predictions: COCO results format, as mmdet's CocoMetric writes it to `<outfile_prefix>.bbox.json` or
            `.segm.json`, or Detectron2's COCOEvaluator to `coco_instances_results.json`. Masks, of the ground truth
            too, are drawn if the predictions have them.
        out: Folder for the pictures, made if need be.
        logs: `scalars.json` files of mmengine, `metrics.json` of Detectron2. From the first step of a resumed run
            on, its log replaces what an earlier one says.
        score_threshold: Lowest score that is drawn.
        max_images: Number of images to draw, spread evenly over those with predictions.

    Returns:
        The pictures written.

    Raises:
        ValueError: A file is missing, empty or not what it should be, or a number is out of range.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must lie between 0 and 1, got {score_threshold}")
    if max_images < 1:
        raise ValueError(f"max_images must be at least 1, got {max_images}")
    truth = _read_annotations(Path(annotations))
    results = _read_predictions(Path(predictions), truth, Path(annotations))
    run = read_logs(logs)

    pairs = _choose_pairs(truth, results, Path(images), score_threshold, max_images)
    with_masks = any("segmentation" in result for result in results)
    figures = {"predictions.png": _draw_pairs(pairs, truth["categories"], with_masks, score_threshold)}
    if logs:
        figures["curves.png"] = draw_curves(run)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder to draw into")
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=DPI)
    return [out / name for name in figures]


def _read_annotations(path: Path) -> dict:
    cure = "give the COCO instances file that the predictions were made for"
    truth = read_json(path, cure)
    check_lists(path, truth, cure)
    if not isinstance(truth.get("annotations"), list):
        raise InputError(f"{path} is not a COCO instances file: it has no list 'annotations'; {cure}")
    return truth


def _read_predictions(path: Path, truth: dict, annotations: Path) -> list[dict]:
    """Results with boxes and masks together, as they are drawn; scoring wants them apart."""
    cure = "give the file that mmdet's CocoMetric writes as <outfile_prefix>.bbox.json or .segm.json"
    results = read_json(path, cure)
    kind = type(results).__name__
    if kind != "list":
        raise InputError(f"{path} is not a COCO results file: it holds a {kind}, not a list; {cure}")
    if not results:
        raise InputError(f"{path} holds no predictions; train for longer, or {cure}")
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for number, result in enumerate(results, 1):
        keys = set(result) if isinstance(result, dict) else set()
        absent = [key for key in ("image_id", "category_id", "score") if key not in keys]
        if not keys & {"bbox", "segmentation"}:
            absent.append("bbox or segmentation")
        if absent:
            raise InputError(f"{path} is not a COCO results file: entry {number} has no {', '.join(absent)}; {cure}")
        for key, known in (("image_id", images), ("category_id", categories)):
            if result[key] not in known:
                raise InputError(
                    f"{path}, entry {number}: {key} {result[key]} does not occur in {annotations}; "
                    "give the annotations that the predictions were made for"
                )
    return results


def _choose_pairs(
    truth: dict, results: list[dict], image_dir: Path, score_threshold: float, max_images: int
) -> list[Pair]:
    results_by_image, truth_by_image = defaultdict(list), defaultdict(list)
    for result in results:
        results_by_image[result["image_id"]].append(result)
    for annotation in truth["annotations"]:
        truth_by_image[annotation["image_id"]].append(annotation)
    candidates = [image for image in truth["images"] if image["id"] in results_by_image]
    count = min(max_images, len(candidates))
    pairs = []
    for i in range(count):
        image = candidates[i * len(candidates) // count]
        file = image_dir / image["file_name"]
        if not file.exists():
            raise InputError(f"{file} does not exist; --images must be the folder that its file_name starts from")
        picture = read_image(file, "replace the file")
        found = sorted(results_by_image[image["id"]], key=lambda result: -result["score"])
        name = Path(image["file_name"]).name
        if len(name) > LONGEST_NAME:
            name = f"…{name[-LONGEST_NAME:]}"
        shown = [result for result in found if result["score"] >= score_threshold]
        pairs.append(Pair(name, picture, truth_by_image[image["id"]], shown, found[0]["score"]))
    return pairs


def _draw_pairs(pairs: list[Pair], categories: list[dict], with_masks: bool, score_threshold: float) -> Figure:
    names = {category["id"]: category["name"] for category in categories}
    colors = {category_id: OBJECT_COLORS[i % len(OBJECT_COLORS)] for i, category_id in enumerate(names)}

    def to_object(record: dict, height: int, width: int) -> DrawnObject:
        label = names[record["category_id"]]
        if "score" in record:
            label += f" {record['score']:.2f}"
        mask = None
        if with_masks and record.get("segmentation"):
            mask = decode_mask(record["segmentation"], height, width)
        box = record["bbox"] if mask is None or record.get("bbox") else box_of_mask(mask).tolist()
        return DrawnObject(box, label, colors[record["category_id"]], mask)

    count = len(pairs)
    columns = {1: 1, 2: 2, 4: 2}.get(count, min(count, 3))
    rows = math.ceil(count / columns)
    panel_width, gap, margin, heading = 2.5, 0.08, 0.12, 0.3
    shape = np.median([pair.picture.shape[0] / pair.picture.shape[1] for pair in pairs])
    panel_height = panel_width * float(np.clip(shape, 0.5, 1.4))
    pair_width, pair_height = 2 * panel_width + 3 * gap, panel_height + heading + gap
    width, height = columns * (pair_width + margin) + margin, rows * (pair_height + margin) + margin
    figure = Figure((width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def shares(left: float, bottom: float, wide: float, high: float) -> tuple[float, float, float, float]:
        """Inches as shares of the figure."""
        return left / width, bottom / height, wide / width, high / height

    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        left, bottom = margin + column * (pair_width + margin), height - (row + 1) * (pair_height + margin)
        x, y, w, h = shares(left, bottom, pair_width, pair_height)
        figure.add_artist(Rectangle((x, y), w, h, color="#eef0f3", zorder=-1))
        heading_right = f"predictions, score ≥ {score_threshold:g}"
        if not pair.found:
            heading_right = f"no prediction ≥ {score_threshold:g}, best {pair.best:.2f}"
        panels = ((f"{pair.name}, ground truth", pair.truth), (heading_right, pair.found))
        for side, (title, records) in enumerate(panels):
            x = left + gap + side * (panel_width + gap)
            axes = figure.add_axes(shares(x, bottom + gap, panel_width, panel_height))
            axes.set_title(title, pad=4, **TITLE_STYLE)
            draw_objects(axes, pair.picture, [to_object(record, *pair.picture.shape[:2]) for record in records])
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = argparse.ArgumentParser(description="Draw detections beside the ground truth, and training curves.")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="ground truth, COCO instances format")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--predictions", required=True, metavar="JSON", help="detections, COCO results format")
    parser.add_argument(
        "--log",
        nargs="*",
        default=[],
        metavar="JSON",
        help="scalars.json or metrics.json of the run, and of those resumed from it",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--score-threshold", type=float, default=0.4, help="lowest score drawn (default: %(default)s)")
    parser.add_argument("--max-images", type=int, default=12, help="images drawn (default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    try:
        for path in show_results(logs=options.pop("log"), **options):
            print(f"wrote {path}")
    except ValueError as error:
        parser.error(str(error))
    return 0
