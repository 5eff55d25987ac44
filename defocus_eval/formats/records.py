"""What is read: ground truth and predictions, the same two classes for every format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

TruthKind = Literal["instances", "lvis", "panoptic", "semantic", "cityscapes", "ade20k", "images"]
Task = Literal["bbox", "segm", "panoptic", "semantic"]


@dataclass(frozen=True)
class Truth:
    """Ground truth.

    Attributes:
        kind: "images" is a list of images without annotations, as test sets have it.
        path: The JSON file, or the folder of label maps.
        data: The JSON. For label maps `images`, `categories` and no annotations.
        categories: Name by id. For label maps the id is the label; without names, the label as text.
        images: COCO image record by id. For label maps made up from the files, in their order, from 1.
        folder: Where the PNGs lie, or None.
        files: PNG by image id; empty where there are none.
        ignore_label: For label maps: the label that does not count.
        notes: What a reader should know about how the file was understood.
    """

    kind: TruthKind
    path: Path
    data: dict[str, Any] = field(repr=False)
    categories: Mapping[int, str]
    images: Mapping[int, dict] = field(repr=False)
    folder: Path | None = None
    files: Mapping[int, Path] = field(default_factory=dict, repr=False)
    ignore_label: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """What a model found.

    Attributes:
        kind: The tasks that the file answers, in the order boxes, masks, panoptic, semantic.
        writer: "mmdet", "detectron2", "mmseg" or "unknown", as the content tells.
        path: What was read: a file, a folder, or the prefix of several files.
        entries: Records by task: COCO results for "bbox" and "segm" (no `bbox` in those of masks, run-length codes
            compressed), annotations with `segments_info` for "panoptic", masks with `image_id` and `category_id` for
            "semantic" of Detectron2.
        folder: Where the PNGs lie, or None.
        files: PNG by image id; empty where there are none.
        numbers: By task, a function from an index of `entries` to where the entry stands, for messages.
        notes: What a reader should know about how the file was understood and mended.
        box_areas: Of the boxes taken out of the entries of masks, `(n,)`; None where there were none.
    """

    kind: tuple[Task, ...]
    writer: str
    path: Path
    entries: Mapping[str, list[dict]] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    files: Mapping[int, Path] = field(default_factory=dict, repr=False)
    numbers: Mapping[str, Callable[[int], str]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    box_areas: np.ndarray | None = field(default=None, repr=False)
