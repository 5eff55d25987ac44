"""What all pictures of maps share; matplotlib is needed by those who draw alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from backbones.analysis.maps import NetworkMaps

DPI = 110
HEAT = matplotlib.colormaps["inferno"]
TITLE: dict[str, Any] = {"fontsize": 8, "color": "#333333"}


def drawn_part(found: np.ndarray | None) -> np.ndarray:
    """What was found of a layer that is drawn, and of no other."""
    assert found is not None, "only layers that are drawn have it"
    return found


@dataclass(frozen=True)
class Named:
    """What was found of a network, with its name and the image that it saw.

    Attributes:
        name: As in headings and legends.
        picture: `(h, w, 3)` uint8.
        maps: What was found.
    """

    name: str
    picture: np.ndarray
    maps: NetworkMaps


def bare(axes: Axes) -> None:
    """Takes ticks and frame from axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """A white figure, its sides in inches, drawn without a window."""
    figure = Figure((width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure
