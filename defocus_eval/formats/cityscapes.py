"""Cityscapes: its labels and the names of its files.

Source: the label table and the evaluation of cityscapesScripts (github.com/mcordts/cityscapesScripts).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

IGNORED = 255


class Label(NamedTuple):
    """A label of Cityscapes.

    Attributes:
        id: What ground truth and submissions hold.
        name: Of the class.
        train_id: What nets are trained on; 255 where the class does not count.
        category: The group that the class belongs to.
        has_instances: Single objects are told apart.
    """

    id: int
    name: str
    train_id: int
    category: str
    has_instances: bool

    @property
    def counts(self) -> bool:
        """The class is scored."""
        return self.train_id != IGNORED


_CATEGORIES = {
    "void": "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground",
    "flat": "road, sidewalk, parking, rail track",
    "construction": "building, wall, fence, guard rail, bridge, tunnel",
    "object": "pole, polegroup, traffic light, traffic sign",
    "nature": "vegetation, terrain",
    "sky": "sky",
    "human": "person, rider",
    "vehicle": "car, truck, bus, caravan, trailer, train, motorcycle, bicycle",
}
_UNSCORED = {"parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer"}


def _make_labels() -> tuple[Label, ...]:
    labels: list[Label] = []
    train_id = 0
    for category, names in _CATEGORIES.items():
        for name in names.split(", "):
            counts = category != "void" and name not in _UNSCORED
            has_instances = category in ("human", "vehicle")
            labels.append(Label(len(labels), name, train_id if counts else IGNORED, category, has_instances))
            train_id += counts
    return tuple(labels)


# In the order of their ids, 0 to 33.
LABELS = _make_labels()
# Label id by train id: 19 of them.
LABEL_OF_TRAIN_ID = np.array([label.id for label in LABELS if label.counts], np.uint8)

_FRAME = re.compile(r"(.+?_\d{6}_\d{6})(_.*)?$")


def frame_of(stem: str) -> str | None:
    """`city_sequence_frame`, the part of a file's name that tells which image it belongs to; None if it has none."""
    found = _FRAME.match(stem)
    return found and found[1]


def image_key(stem: str) -> str:
    """What an image, its label map and its predictions are called alike: the frame, or elsewhere the whole stem."""
    return frame_of(stem) or stem
