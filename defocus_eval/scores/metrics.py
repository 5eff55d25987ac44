"""What COCO's and LVIS' official numbers are, by name and in their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from defocus_eval.scores.accumulate import Accumulated
from defocus_eval.scores.matching import AREAS

# Detections of an image and class that COCO counts, and of an image that LVIS counts.
COCO_MOST = (1, 10, 100)
LVIS_MOST = 300
# Detections of a class that count in AP-fixed (Dave et al., arXiv 2102.01066), whatever their images.
FIXED_MOST = 10_000
# What mmdet's CocoMetric has for COCO's 1, 10, 100 unless it is told otherwise.
MMDET_MOST = (100, 300, 1000)
SIZES = tuple(AREAS)[1:]


@dataclass(frozen=True)
class Metric:
    """One official number.

    Attributes:
        kind: "precision" or "recall".
        area: Key of `AREAS`.
        threshold: Index of the IoU threshold; None for the mean over all.
        most: Detections of an image and class that count; None for all that were matched.
        frequency: Of the classes in LVIS, "r", "c" or "f"; None for all.
    """

    kind: str
    area: str = "all"
    threshold: int | None = None
    most: int | None = None
    frequency: str | None = None

    def of(self, accumulated: Accumulated, frequencies: np.ndarray) -> np.ndarray:
        """The number, `(samples,)`; NaN where there is nothing to find.

        Args:
            accumulated: For ``most`` and at least ``area``.
            frequencies: Of each class.
        """
        values = getattr(accumulated, self.kind)[tuple(AREAS).index(self.area)]
        if self.threshold is not None:
            values = values[self.threshold, None]
        if self.frequency is not None:
            values = values[:, frequencies == self.frequency]
        return mean_of_defined(values, (0, 1))


def coco_metrics(most: tuple[int, int, int] = COCO_MOST) -> dict[str, Metric]:
    """COCO's twelve numbers, for at most so many detections of an image and class.

    The first is taken at 100 whatever ``most`` says, as pycocotools has it.
    """
    last = most[-1]
    return {
        "AP": Metric("precision", most=100),
        "AP50": Metric("precision", threshold=0, most=last),
        "AP75": Metric("precision", threshold=5, most=last),
        **{f"AP{size[0]}": Metric("precision", size, most=last) for size in SIZES},
        **{f"AR{count}": Metric("recall", most=count) for count in most},
        **{f"AR{size[0]}": Metric("recall", size, most=last) for size in SIZES},
    }


def lvis_metrics() -> dict[str, Metric]:
    """LVIS' thirteen numbers."""
    return {
        "AP": Metric("precision"),
        "AP50": Metric("precision", threshold=0),
        "AP75": Metric("precision", threshold=5),
        **{f"AP{size[0]}": Metric("precision", size) for size in SIZES},
        **{f"AP{frequency}": Metric("precision", frequency=frequency) for frequency in "rcf"},
        f"AR@{LVIS_MOST}": Metric("recall"),
        **{f"AR{size[0]}@{LVIS_MOST}": Metric("recall", size) for size in SIZES},
    }


def mean_of_defined(values: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    """Mean over ``axes`` of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axes) / defined.sum(axes)
