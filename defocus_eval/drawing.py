"""Pictures with matplotlib: boxes, masks and label maps on images, and the curves of a training.

Labels are placed here: of the libraries that place them, supervision 0.31 lets them cover each other and small boxes,
adjustText 1.4 and textalloc 1.2 move them away from their boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from pycocotools import mask as coco_mask

from defocus_eval.errors import InputError
from defocus_eval.formats.masks import run_length_code
from defocus_eval.logs import METRICS, Evaluation, Run, smooth

# Left, lower, right and upper edge in pixels of a figure.
Place = tuple[float, float, float, float]
DPI = 130
# A matplotlib palette of single colours.
_TAB10, _TAB20 = (cast(Any, matplotlib.colormaps[name]).colors for name in ("tab10", "tab20"))
OBJECT_COLORS = (*_TAB10, *_TAB20[1::2])
# Label 0 is grey: in most sets it is the background.
LABEL_COLORS = np.array([(0.35, 0.35, 0.35), *OBJECT_COLORS])
MASK_OPACITY = 0.45
# A label's share of its pixels: colours must be told apart, and the image still be seen through them.
LABEL_OPACITY = 0.65
TITLE_STYLE: dict[str, Any] = {"fontsize": 8.5, "loc": "left", "color": "#333333"}


class DrawnObject(NamedTuple):
    """An object to draw.

    Attributes:
        box: x, y, width, height in pixels.
        label: What to write at the box.
        color: Red, green and blue, 0 to 1.
        mask: `(h, w)` bool or 0 and 1, or None.
    """

    box: Sequence[float]
    label: str
    color: tuple[float, float, float]
    mask: np.ndarray | None


def read_image(path: Path, cure: str, mode: str | None = "RGB") -> np.ndarray:
    """Pixels of an image file: `(h, w, 3)` uint8 as "RGB", `(h, w)` uint8 as "L", as it is stored with None.

    Args:
        path: The file.
        cure: What the user can do where it cannot be read.
        mode: Mode of Pillow.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image if mode is None else image.convert(mode))
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error}); {cure}") from error


def decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Mask of polygons or of a run-length code, compressed or not; `(h, w)` uint8.

    Raises:
        InputError: The code is of another size.
    """
    mask = coco_mask.decode(run_length_code(segmentation, height, width))
    if mask.shape != (height, width):
        raise InputError(
            f"a mask of {mask.shape[1]}×{mask.shape[0]} pixels does not fit its image of {width}×{height}; "
            "give the images that the predictions were made for"
        )
    return mask


def box_of_mask(mask: np.ndarray) -> np.ndarray:
    """x, y, width and height, `(4,)` float64 in pixels, of the smallest box around a mask, `(h, w)` uint8."""
    return coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))


def draw_objects(axes: Axes, picture: np.ndarray, objects: Sequence[DrawnObject]) -> None:
    """Draws an image, `(h, w, 3)` uint8, with the masks, boxes and labels of its objects."""
    picture = picture.astype(np.float32) / 255
    for item in objects:
        if item.mask is not None:
            opacity = item.mask[..., None] * np.float32(MASK_OPACITY)
            picture = picture + (np.asarray(item.color, np.float32) - picture) * opacity
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_anchor("NW")
    axes.set_autoscale_on(False)
    for item in objects:
        if item.mask is not None and item.mask.any():
            columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
            axes.contour(columns, rows, item.mask, levels=[0.5], colors=[item.color], linewidths=1)
        x, y, box_width, box_height = item.box
        # The white rim keeps the frame visible on a background of its colour.
        for line_width, color in ((2.6, "white"), (1.5, item.color)):
            axes.add_patch(Rectangle((x, y), box_width, box_height, fill=False, linewidth=line_width, edgecolor=color))
    draw_labels(axes, objects)


def draw_labels(axes: Axes, objects: Sequence[DrawnObject]) -> None:
    """Writes each label at its box where it hides least of the labels and boxes there are."""
    axes.apply_aspect()
    # Only canvases of pixels, as all of ours are, have one.
    renderer = cast(FigureCanvasAgg, axes.figure.canvas).get_renderer()
    frame = axes.get_window_extent(renderer)
    to_display = axes.transData.transform
    boxes = []
    for item in objects:
        x, y, width, height = item.box
        (x0, y0), (x1, y1) = to_display((x, y + height)), to_display((x + width, y))
        boxes.append((x0, y0, x1, y1))
    placed: list[Place] = []
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
        places: list[tuple[float, int, Place]] = []
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
        x, y = axes.transData.inverted().transform((place[0] + pad, place[1] + pad))
        text.set_position((x, y))


def _overlap(first: Place, second: Place) -> float:
    """Area that two rectangles `(x0, y0, x1, y1)` share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def label_color(label: int) -> np.ndarray:
    """Red, green and blue, 0 to 1, of a label of a label map."""
    return LABEL_COLORS[label % len(LABEL_COLORS)]


def draw_label_map(axes: Axes, picture: np.ndarray, labels: np.ndarray) -> None:
    """Draws an image in grey, `(h, w)` uint8, under its labels, `(h, w)`; 0 and 255 get no colour."""
    opacity = np.where((labels > 0) & (labels < 255), LABEL_OPACITY, 0.0)[..., None]
    colors = LABEL_COLORS[labels.astype(int) % len(LABEL_COLORS)]
    axes.imshow(picture[..., None] / 255 * (1 - opacity) + colors * opacity)


def draw_curves(run: Run) -> Figure:
    """Loss on the left, scores on the right; one panel where the log has but one of them."""
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
    steps, values = list(losses), list(losses.values())
    axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1, label="logged")
    axes.plot(steps, smooth(values), color="tab:blue", linewidth=2, label="smoothed")
    axes.set(title="training loss", xlabel="iteration", ylabel="loss")
    axes.legend(frameon=False)


def _draw_scores(axes: Axes, evaluations: list[Evaluation]) -> None:
    by_epoch = all(evaluation.epoch is not None for evaluation in evaluations)
    unit = "epoch" if by_epoch else "iteration"
    highest, drawn = 0.0, []
    for metric, name in METRICS.items():
        points = [(getattr(e, unit), e.scores[metric]) for e in evaluations if metric in e.scores]
        if not points:
            continue
        steps, values = zip(*points)
        best = max(values)
        highest = max(highest, best)
        drawn.append(name)
        label = f"{name}, best {best:.3f} at {unit} {steps[values.index(best)]}"
        axes.plot(steps, values, marker="o", markersize=4, linewidth=2, label=label)
    if by_epoch:
        cast(MaxNLocator, axes.xaxis.get_major_locator()).set_params(integer=True)
    quantity = "average precision" if all("AP" in name for name in drawn) else ", ".join(drawn)
    axes.set(title="validation", xlabel=unit, ylabel=quantity)
    axes.set_ylim(0, min(1.02, max(0.05, 1.25 * highest)))
    axes.legend(frameon=False, loc="upper left" if highest < 0.8 else "best")
