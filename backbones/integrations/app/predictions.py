"""A network as the page takes it, what it finds in an image, and the picture of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from defocus_eval.drawing import DPI, OBJECT_COLORS, DrawnObject, draw_label_map, draw_objects, label_color

# Objects of an image that are kept: those that COCO's evaluation counts.
MOST = 100
# Classes of an image that are said.
SAID = 5
# What `draw_label_map` leaves without a colour.
_UNSURE = 255
_WIDTH = 8.0


class Found(NamedTuple):
    """An object.

    Attributes:
        box: x, y, width, height in pixels of the image.
        label: Number of its class.
        score: 0 to 1.
        mask: `(h, w)` bool, or None.
    """

    box: tuple[float, float, float, float]
    label: int
    score: float
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image; what it does not tell is None.

    Attributes:
        names: Of the classes, by their numbers.
        objects: The best first.
        labels: Class of each pixel, `(h, w)`.
        certainty: Probability of that class, `(h, w)`.
        classes: Probability of each class for the whole image.
        label_names: Of the classes of pixels, where they have numbers of their own.
    """

    names: Sequence[str]
    objects: tuple[Found, ...] | None = None
    labels: np.ndarray | None = None
    certainty: np.ndarray | None = None
    classes: np.ndarray | None = None
    label_names: Sequence[str] = ()

    def name(self, label: int, of_pixels: bool = False) -> str:
        """Of a class, its number where it has no name."""
        names = (self.label_names if of_pixels else None) or self.names
        return names[label] if label < len(names) else str(label)


@dataclass(frozen=True)
class Opened:
    """A network with its weights, ready for images.

    Attributes:
        model: In evaluation, on its device.
        predict: `(h, w, 3)` uint8, red first, to what it finds.
        mean: Of each channel that the network sees, in the order in which it sees them, of pixels from 0 to 255.
        std: The same.
        red_first: Whether that order begins with red.
    """

    model: nn.Module
    predict: Callable[[np.ndarray], Prediction]
    mean: Sequence[float]
    std: Sequence[float]
    red_first: bool = True


def labels_of(probabilities: Tensor) -> dict[str, np.ndarray]:
    """The ``labels`` and the ``certainty`` of a `Prediction`, from the probabilities of classes `(classes, h, w)`."""
    certainty, labels = probabilities.max(0)
    return {"labels": labels.cpu().numpy(), "certainty": certainty.cpu().numpy()}


def normalisation_of(module: nn.Module, mean: str, std: str) -> tuple[list[float], list[float]]:
    """The ``mean`` and the ``std`` of an `Opened`: buffers of a module by name; 0 and 1 where it has none."""
    found = {name: getattr(module, name, None) for name in (mean, std)}
    return tuple(
        3 * [absent] if found[name] is None else found[name].flatten().tolist()
        for name, absent in ((mean, 0.0), (std, 1.0))
    )


def best_objects(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray | None = None
) -> tuple[Found, ...]:
    """Objects from arrays of as many rows.

    Args:
        boxes: x0, y0, x1, y1 in pixels, `(n, 4)`.
        scores: `(n,)`.
        labels: `(n,)`.
        masks: `(n, h, w)`.
    """
    order = np.argsort(-scores, kind="stable")[:MOST]
    found = []
    for i in order.tolist():
        x0, y0, x1, y1 = boxes[i].tolist()
        mask = None if masks is None else masks[i].astype(bool)
        found.append(Found((x0, y0, x1 - x0, y1 - y0), int(labels[i]), float(scores[i]), mask))
    return tuple(found)


def describe(prediction: Prediction, threshold: float) -> str:
    """What is shown at a threshold of the score, in a sentence."""
    said = []
    if prediction.objects is not None:
        shown = [item for item in prediction.objects if item.score >= threshold]
        counts = Counter(prediction.name(item.label) for item in shown)
        which = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        best = prediction.objects[0].score if prediction.objects else None
        why = "" if shown or best is None else f"; the best has {best:.2f}"
        said.append(f"{len(shown)} objects of score ≥ {threshold:.2f}{f': {which}' if which else why}")
    if prediction.labels is not None:
        sure = prediction.certainty >= threshold
        shares = Counter(dict(zip(*np.unique(prediction.labels[sure], return_counts=True))))
        parts = [
            f"{prediction.name(label, of_pixels=True)} {100 * count / sure.size:.0f} %"
            for label, count in shares.most_common(SAID)
        ]
        which = ", ".join(parts) or "none"
        said.append(f"{100 * sure.mean():.0f} % of the pixels have a probability ≥ {threshold:.2f}: {which}")
    if prediction.classes is not None:
        best = np.argsort(-prediction.classes)[:SAID].tolist()
        said.append(", ".join(f"{prediction.name(label)} {prediction.classes[label]:.2f}" for label in best))
    return ". ".join(said) or "This network has no head: it has maps alone."


def draw(picture: np.ndarray, prediction: Prediction, threshold: float) -> np.ndarray:
    """The image with what is found at a threshold of the score, `(h, w, 3)` uint8; both of a panoptic head's below."""
    height, width = picture.shape[:2]
    with_labels = prediction.labels is not None
    rows = 1 + (with_labels and prediction.objects is not None)
    figure = Figure((_WIDTH, rows * _WIDTH * min(height / width, 2) + 0.6 * with_labels), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, 1, squeeze=False).flat)
    figure.subplots_adjust(0, 0.6 / figure.get_figheight() * with_labels, 1, 1, hspace=0.02)
    if with_labels:
        axes = panels.pop()
        axes.axis("off")
        labels = np.where(prediction.certainty >= threshold, prediction.labels, _UNSURE)
        draw_label_map(axes, picture.mean(-1), labels)
        present = np.unique(labels[labels != _UNSURE]).tolist()
        handles = [Patch(color=label_color(label), label=prediction.name(label, of_pixels=True)) for label in present]
        figure.legend(handles=handles, loc="lower center", ncols=8, frameon=False, fontsize=8)
    for axes in panels:
        draw_objects(axes, picture, _to_draw(prediction, threshold))
    return to_pixels(figure)


def _to_draw(prediction: Prediction, threshold: float) -> list[DrawnObject]:
    return [
        DrawnObject(
            item.box,
            f"{prediction.name(item.label)} {item.score:.2f}",
            OBJECT_COLORS[item.label % len(OBJECT_COLORS)],
            item.mask,
        )
        for item in prediction.objects or ()
        if item.score >= threshold
    ]


def to_pixels(figure: Figure) -> np.ndarray:
    """A figure of matplotlib, drawn: `(h, w, 3)` uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
