"""Draws what a detector found beside what is there, and how its training went.

    OUT/predictions.png   for some images, ground truth on the left and predictions on the right
    OUT/curves.png        with --log: loss over iterations, average precision over epochs or iterations

Example:
    python tools/show_results.py \
        --annotations data/shapes/annotations/instances_val.json --images data/shapes/val \
        --predictions work_dirs/demo/val.bbox.json --log work_dirs/demo/*/vis_data/scalars.json \
        --out work_dirs/demo
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

DPI = 130
METRICS = {"bbox_mAP": "box AP", "bbox_mAP_50": "box AP50", "segm_mAP": "mask AP", "segm_mAP_50": "mask AP50"}
# Detectron2 says these in hundredths.
DETECTRON2_METRICS = {
    "bbox/AP": "bbox_mAP",
    "bbox/AP50": "bbox_mAP_50",
    "segm/AP": "segm_mAP",
    "segm/AP50": "segm_mAP_50",
}
BOX_COLORS = matplotlib.colormaps["tab10"].colors + matplotlib.colormaps["tab20"].colors[1::2]
MASK_OPACITY = 0.45
LONGEST_NAME = 24


class DrawnObject(NamedTuple):
    """An object to draw.

    Attributes:
        box: x, y, width, height in pixels.
        label: What to write at the box.
        color: Red, green and blue, 0 to 1.
        mask: `(h, w)` bool, or None.
    """

    box: Sequence[float]
    label: str
    color: tuple[float, float, float]
    mask: np.ndarray | None


class Evaluation(NamedTuple):
    """One evaluation in a log.

    Attributes:
        iteration: The last training iteration known to lie before it.
        epoch: Epochs trained, or None where the log counts iterations.
        scores: Average precision by key of `METRICS`.
    """

    iteration: int
    epoch: int | None
    scores: dict[str, float]


class Run(NamedTuple):
    """What one log file says: losses by iteration, and evaluations in order."""

    losses: dict[int, float]
    evaluations: list[Evaluation]


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
    runs = [_read_log(Path(log)) for log in logs]

    figures = {"predictions.png": _draw_predictions(truth, results, Path(images), score_threshold, max_images)}
    if runs:
        figures["curves.png"] = _draw_curves(_merge_runs(runs))
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder to draw into")
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=DPI)
    return [out / name for name in figures]


def _read_text(path: Path, cure: str) -> str:
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); {cure}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file; {cure}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; {cure}")
    return text


def _read_json(path: Path, cure: str) -> Any:
    try:
        return json.loads(_read_text(path, cure))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); {cure}") from error


def _read_annotations(path: Path) -> dict:
    cure = "give the COCO instances file that the predictions were made for"
    truth = _read_json(path, cure)
    found = truth if isinstance(truth, dict) else {}
    absent = [key for key in ("images", "annotations", "categories") if not isinstance(found.get(key), list)]
    if absent:
        raise ValueError(f"{path} is not a COCO instances file: it has no list {absent[0]!r}; {cure}")
    if not truth["images"]:
        raise ValueError(f"{path} lists no images; {cure}")
    return truth


def _read_predictions(path: Path, truth: dict, annotations: Path) -> list[dict]:
    cure = "give the file that mmdet's CocoMetric writes as <outfile_prefix>.bbox.json or .segm.json"
    results = _read_json(path, cure)
    kind = type(results).__name__
    if kind != "list":
        raise ValueError(f"{path} is not a COCO results file: it holds a {kind}, not a list; {cure}")
    if not results:
        raise ValueError(f"{path} holds no predictions; train for longer, or {cure}")
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for number, result in enumerate(results, 1):
        keys = set(result) if isinstance(result, dict) else set()
        absent = [key for key in ("image_id", "category_id", "score") if key not in keys]
        if not keys & {"bbox", "segmentation"}:
            absent.append("bbox or segmentation")
        if absent:
            raise ValueError(f"{path} is not a COCO results file: entry {number} has no {', '.join(absent)}; {cure}")
        for key, known in (("image_id", images), ("category_id", categories)):
            if result[key] not in known:
                raise ValueError(
                    f"{path}, entry {number}: {key} {result[key]} does not occur in {annotations}; "
                    "give the annotations that the predictions were made for"
                )
    return results


def _draw_predictions(
    truth: dict, results: list[dict], image_dir: Path, score_threshold: float, max_images: int
) -> Figure:
    results_by_image, truth_by_image = defaultdict(list), defaultdict(list)
    for result in results:
        results_by_image[result["image_id"]].append(result)
    for annotation in truth["annotations"]:
        truth_by_image[annotation["image_id"]].append(annotation)
    candidates = [image for image in truth["images"] if image["id"] in results_by_image]
    count = min(max_images, len(candidates))
    chosen = [candidates[i * len(candidates) // count] for i in range(count)]
    pixels = [_read_image(image_dir / image["file_name"]) for image in chosen]

    names = {category["id"]: category["name"] for category in truth["categories"]}
    colors = {category_id: BOX_COLORS[i % len(BOX_COLORS)] for i, category_id in enumerate(names)}
    with_masks = any("segmentation" in result for result in results)

    def to_object(record: dict, height: int, width: int) -> DrawnObject:
        label = names[record["category_id"]]
        if "score" in record:
            label += f" {record['score']:.2f}"
        mask = None
        if with_masks and record.get("segmentation"):
            mask = _decode_mask(record["segmentation"], height, width)
        box = record["bbox"] if record.get("bbox") else coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))
        return DrawnObject(box, label, colors[record["category_id"]], mask)

    pairs = {1: 1, 2: 2, 4: 2}.get(count, min(count, 3))
    rows = math.ceil(count / pairs)
    panel_width, gap, margin, heading = 2.5, 0.08, 0.12, 0.3
    panel_height = panel_width * float(np.clip(np.median([p.shape[0] / p.shape[1] for p in pixels]), 0.5, 1.4))
    pair_width, pair_height = 2 * panel_width + 3 * gap, panel_height + heading + gap
    figure_size = (pairs * (pair_width + margin) + margin, rows * (pair_height + margin) + margin)
    figure = Figure(figure_size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    for number, (image, picture) in enumerate(zip(chosen, pixels)):
        row, column = divmod(number, pairs)
        left = margin + column * (pair_width + margin)
        bottom = figure_size[1] - (row + 1) * (pair_height + margin)
        figure.add_artist(
            Rectangle(
                (left / figure_size[0], bottom / figure_size[1]),
                pair_width / figure_size[0],
                pair_height / figure_size[1],
                color="#eef0f3",
                zorder=-1,
            )
        )
        shown = [result for result in results_by_image[image["id"]] if result["score"] >= score_threshold]
        shown.sort(key=lambda result: -result["score"])
        name = Path(image["file_name"]).name
        if len(name) > LONGEST_NAME:
            name = f"…{name[-LONGEST_NAME:]}"
        heading_right = f"predictions, score ≥ {score_threshold:g}"
        if not shown:
            best = max(result["score"] for result in results_by_image[image["id"]])
            heading_right = f"no prediction ≥ {score_threshold:g}, best {best:.2f}"
        panels = (
            (f"{name}, ground truth", truth_by_image[image["id"]]),
            (heading_right, shown),
        )
        for side, (title, records) in enumerate(panels):
            x = left + gap + side * (panel_width + gap)
            axes = figure.add_axes(
                (
                    x / figure_size[0],
                    (bottom + gap) / figure_size[1],
                    panel_width / figure_size[0],
                    panel_height / figure_size[1],
                )
            )
            axes.set_title(title, fontsize=8.5, loc="left", color="#333333", pad=4)
            _draw_panel(axes, picture, [to_object(record, *picture.shape[:2]) for record in records])
    return figure


def _read_image(path: Path) -> np.ndarray:
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} does not exist; --images must be the folder that its file_name starts from"
        ) from error
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); replace the file") from error


def _decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Mask of polygons or of a run-length code, compressed or not; `(h, w)` uint8."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    mask = coco_mask.decode(segmentation)
    if mask.shape != (height, width):
        raise ValueError(
            f"a mask of {mask.shape[1]}×{mask.shape[0]} pixels does not fit its image of {width}×{height}; "
            "give the images that the predictions were made for"
        )
    return mask


def _draw_panel(axes: Axes, picture: np.ndarray, objects: list[DrawnObject]) -> None:
    picture = picture.astype(np.float32) / 255
    for item in objects:
        if item.mask is not None:
            opacity = item.mask[..., None] * np.float32(MASK_OPACITY)
            picture = picture + (np.float32(item.color) - picture) * opacity
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_anchor("NW")
    axes.set_autoscale_on(False)
    for item in objects:
        if item.mask is not None and item.mask.any():
            x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
            axes.contour(x, y, item.mask, levels=[0.5], colors=[item.color], linewidths=1)
        x, y, box_width, box_height = item.box
        # The white rim keeps the frame visible on a background of its colour.
        for line_width, color in ((2.6, "white"), (1.5, item.color)):
            axes.add_patch(Rectangle((x, y), box_width, box_height, fill=False, linewidth=line_width, edgecolor=color))
    _draw_labels(axes, objects)


def _draw_labels(axes: Axes, objects: list[DrawnObject]) -> None:
    """Writes each label at its box where it hides least of the labels and boxes there are."""
    axes.apply_aspect()
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    to_display = axes.transData.transform
    boxes = []
    for item in objects:
        x, y, width, height = item.box
        (x0, y0), (x1, y1) = to_display((x, y + height)), to_display((x + width, y))
        boxes.append((x0, y0, x1, y1))
    placed = []
    for number, item in enumerate(objects):
        luminance = np.dot(item.color, (0.299, 0.587, 0.114))
        text = axes.text(
            0, 0, item.label, fontsize=6.5, color="white" if luminance < 0.6 else "black",
            bbox={"facecolor": item.color, "edgecolor": "none", "pad": 1.2}, va="bottom", ha="left", zorder=5,
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        pad = 1.2 * DPI / 72
        width, height = extent.width + 2 * pad, extent.height + 2 * pad
        x0, y0, x1, y1 = boxes[number]
        others = boxes[:number] + boxes[number + 1 :]
        places = []
        for x, y in (
            (x0, y1), (x1 - width, y1), (x0, y0 - height), (x1 - width, y0 - height), (x1, y1 - height),
            (x0 - width, y1 - height), (x1, y0), (x0 - width, y0), (x0, y1 - height), (x0, y0),
        ):  # fmt: skip
            x = min(max(x, frame.x0), frame.x1 - width)
            y = min(max(y, frame.y0), frame.y1 - height)
            place = (x, y, x + width, y + height)
            hidden = (
                6 * sum(_overlap(place, other) for other in placed)
                + sum(_overlap(place, other) for other in others)
                + 2 * _overlap(place, boxes[number])
            )
            places.append((hidden, len(places), place))
        place = min(places)[2]
        placed.append(place)
        text.set_position(axes.transData.inverted().transform((place[0] + pad, place[1] + pad)))


def _overlap(first: tuple, second: tuple) -> float:
    """Area that two rectangles `(x0, y0, x1, y1)` share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def _read_log(path: Path) -> Run:
    """Reads a `scalars.json` of mmengine or a `metrics.json` of Detectron2.

    In the former, the step of a training line is its iteration. That of an evaluation is the epoch in epoch-based
    training, the iteration in iteration-based training, and there 0 if the logger hook was left at
    `log_metric_by_epoch=True`. An iteration cannot lie before that of the training line above it, which tells the
    three apart. In the latter, all lines count iterations, and one may be of training and evaluation at once.
    """
    cure = "give the vis_data/scalars.json of an mmengine run, or the metrics.json of a Detectron2 run"
    lines = [line for line in _read_text(path, cure).splitlines() if line.strip()]
    run = Run({}, [])
    iteration, epoch = 0, None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            # A run that was killed may leave half a line.
            if number == len(lines) > 1:
                break
            raise ValueError(f"{path}, line {number} is not JSON ({error}); {cure}") from error
        kind = type(record).__name__
        if kind != "dict":
            raise ValueError(f"{path}, line {number} holds a {kind}, not an object; {cure}")
        step = record.get("step", record.get("iter", record.get("iteration")))
        loss = record.get("loss", record.get("train/loss", record.get("total_loss")))
        scores = {}
        for key, value in record.items():
            if key in DETECTRON2_METRICS:
                # NaN where there is nothing to find.
                if math.isfinite(value):
                    scores[DETECTRON2_METRICS[key]] = value / 100
                continue
            metric = key.rsplit("/", 1)[-1]
            # COCO evaluation says -1 where there is nothing to find.
            if metric in METRICS and value >= 0:
                scores[metric] = value
        if step is None:
            continue
        if loss is not None:
            iteration, epoch = step, record.get("epoch")
            if math.isfinite(loss):
                run.losses[step] = loss
        if scores:
            by_epoch = epoch is not None and step < iteration
            run.evaluations.append(Evaluation(max(iteration, step), step if by_epoch else None, scores))
    if not run.losses and not run.evaluations:
        raise ValueError(f"{path} holds neither finite training losses nor COCO evaluations; {cure}")
    return run


def _merge_runs(runs: Sequence[Run]) -> Run:
    """One history of a run and those resumed from it, whatever their order."""

    def first_step(run: Run) -> int:
        return min([*run.losses, *(evaluation.iteration for evaluation in run.evaluations)])

    merged = Run({}, [])
    for run in sorted(runs, key=first_step):
        start = first_step(run)
        losses = {step: loss for step, loss in merged.losses.items() if step < start}
        evaluations = [evaluation for evaluation in merged.evaluations if evaluation.iteration < start]
        merged = Run({**losses, **run.losses}, [*evaluations, *run.evaluations])
    return merged


def _draw_curves(run: Run) -> Figure:
    panels = bool(run.losses) + bool(run.evaluations)
    figure = Figure((5.4 * panels, 3.9), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = list(np.ravel(figure.subplots(1, panels)))
    for axes in all_axes:
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if run.losses:
        _draw_losses(all_axes[0], run.losses)
    if run.evaluations:
        _draw_scores(all_axes[-1], run.evaluations)
    return figure


def _draw_losses(axes: Axes, losses: dict[int, float]) -> None:
    steps, values = np.array(list(losses.items())).T
    window = np.ones(min(len(values), max(3, len(values) // 15)))
    smooth = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1, label="logged")
    axes.plot(steps, smooth, color="tab:blue", linewidth=2, label="smoothed")
    axes.set(title="training loss", xlabel="iteration", ylabel="loss")
    axes.legend(frameon=False)


def _draw_scores(axes: Axes, evaluations: list[Evaluation]) -> None:
    by_epoch = all(evaluation.epoch is not None for evaluation in evaluations)
    unit = "epoch" if by_epoch else "iteration"
    highest = 0.0
    for metric, name in METRICS.items():
        points = [(getattr(e, unit), e.scores[metric]) for e in evaluations if metric in e.scores]
        if not points:
            continue
        steps, values = zip(*points)
        best = max(values)
        highest = max(highest, best)
        label = f"{name}, best {best:.3f} at {unit} {steps[values.index(best)]}"
        axes.plot(steps, values, marker="o", markersize=4, linewidth=2, label=label)
    if by_epoch:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(title="validation", xlabel=unit, ylabel="average precision")
    axes.set_ylim(0, min(1.02, max(0.05, 1.25 * highest)))
    axes.legend(frameon=False, loc="upper left" if highest < 0.8 else "best")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw detections beside the ground truth, and training curves.")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="ground truth, COCO instances format")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--predictions", required=True, metavar="JSON", help="detections, COCO results format")
    parser.add_argument(
        "--log",
        nargs="+",
        default=[],
        metavar="JSON",
        help="scalars.json or metrics.json of the run, and of those resumed from it",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--score-threshold", type=float, default=0.4, help="lowest score drawn (default: %(default)s)")
    parser.add_argument("--max-images", type=int, default=12, help="images drawn (default: %(default)s)")
    arguments = vars(parser.parse_args())
    try:
        for path in show_results(logs=arguments.pop("log"), **arguments):
            print(f"wrote {path}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
