"""What each board takes, as data. Where a board publishes no rule, none is made up.

Sources: the pages "upload", "results format" and "guidelines" of cocodataset.org; panopticapi; lvis-api; the README of
CSAILVision/sceneparsing; the evaluation scripts of cityscapesScripts.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from defocus_eval.errors import InputError

_CODALAB = (
    "CodaLab's COCO competitions are suspended and none was opened elsewhere (cocodataset/cocoapi #691 and #693, "
    "codalab/codabench #2352): the package can be made, not handed in. Results on val2017 are what can be reported"
)
SEEN = "November 2026"


@dataclass(frozen=True)
class Board:
    """A board's rules.

    Attributes:
        name: What `defocus submit --board` calls it.
        title: What people call it.
        kind: What a submission consists of.
        split: The images to answer, in the words of the board.
        rehearsal: The split whose ground truth is public.
        images: Number of images in the split; None where no source says.
        package: Name of the zip, less its ending; `{split}` and `{method}` are filled in.
        state: Whether it accepts submissions, as last known.
        seen: When that was.
        tasks: What is scored, of boxes and masks.
        per_image: Detections an image that count, best first, all classes together; None for no limit.
        per_class: Detections a class that count, best first, all images together; None for no limit.
        labels: For label maps: the labels that are allowed.
        size: For Cityscapes: width and height of every image.
    """

    name: str
    title: str
    kind: Literal["detections", "panoptic", "label maps", "cityscapes instances"]
    split: str
    rehearsal: str
    images: int | None
    package: str
    state: str
    seen: str = SEEN
    tasks: tuple[str, ...] = ()
    per_image: int | None = None
    per_class: int | None = None
    labels: range = range(0)
    size: tuple[int, int] | None = None

    @property
    def status(self) -> str:
        """The board's state with its date."""
        return f"{self.title}, as last known in {self.seen}: {self.state}."


_COCO: dict[str, Any] = dict(
    kind="detections", package="detections_{split}_{method}_results", rehearsal="val2017", per_image=100
)
_BOXES_OR_MASKS = ("bbox", "segm")
_LVIS: dict[str, Any] = dict(kind="detections", split="test-dev", rehearsal="val", images=19822, tasks=("segm",))
_EVALAI = (
    "EvalAI challenge 1114 is listed; whether it still scores could not be confirmed (Cloud-CV/EvalAI #4305 tells of "
    "submissions that never ended)"
)
_CITYSCAPES: dict[str, Any] = dict(split="test", rehearsal="val", images=1525, size=(2048, 1024))
_CITYSCAPES_STATE = "its server is up, which could not be confirmed by a submission; an account is needed"

BOARDS = {
    board.name: board
    for board in (
        Board(
            "coco-test-dev",
            "COCO test-dev2017, boxes or masks",
            split="test-dev2017",
            images=20288,
            state=_CODALAB,
            tasks=_BOXES_OR_MASKS,
            **_COCO,
        ),
        Board(
            "coco-test-challenge",
            "COCO test2017 (test-dev and test-challenge together), boxes or masks",
            split="test-challenge2017",
            images=40670,
            state=_CODALAB,
            tasks=_BOXES_OR_MASKS,
            **_COCO,
        ),
        Board(
            "coco-val",
            "COCO val2017, boxes or masks",
            split="val2017",
            images=5000,
            state="its ground truth is public: defocus evaluate gives the official score. " + _CODALAB,
            tasks=_BOXES_OR_MASKS,
            **_COCO,
        ),
        Board(
            "coco-panoptic",
            "COCO panoptic test-dev2017",
            kind="panoptic",
            split="test-dev2017",
            rehearsal="val2017",
            images=20288,
            package="panoptic_{split}_{method}_results",
            state=_CODALAB,
        ),
        Board(
            "lvis",
            "LVIS v1 test-dev",
            package="lvis_v1_{split}_{method}_results",
            state=_EVALAI,
            per_image=300,
            **_LVIS,
        ),
        Board(
            "lvis-fixed",
            "LVIS v1 test-dev by AP-fixed",
            package="lvis_v1_fixed_{split}_{method}_results",
            state=_EVALAI,
            per_class=10000,
            **_LVIS,
        ),
        Board(
            "objects365",
            "Objects365 v2 validation",
            kind="detections",
            split="val",
            rehearsal="val",
            images=80000,
            package="objects365_{split}_{method}_results",
            state="no test server was found; its ground truth of val is public",
            tasks=("bbox",),
            per_image=100,
        ),
        Board(
            "ade20k",
            "ADE20K, scene parsing with 150 classes",
            kind="label maps",
            split="test",
            rehearsal="val",
            images=None,
            package="ade20k_{split}_{method}",
            state="whether its server accepts submissions could not be confirmed",
            labels=range(151),
        ),
        Board(
            "cityscapes",
            "Cityscapes, pixel-level semantic labels",
            kind="label maps",
            package="cityscapes_{split}_{method}",
            state=_CITYSCAPES_STATE,
            labels=range(34),
            **_CITYSCAPES,
        ),
        Board(
            "cityscapes-instances",
            "Cityscapes, instance-level semantic labels",
            kind="cityscapes instances",
            package="cityscapes_instances_{split}_{method}",
            state=_CITYSCAPES_STATE,
            **_CITYSCAPES,
        ),
    )
}


def board_named(name: str) -> Board:
    """The board of that name.

    Raises:
        InputError: There is none; the message names those that come near, or all.
    """
    if name not in BOARDS:
        near = difflib.get_close_matches(name, BOARDS) or BOARDS
        raise InputError(f"there is no board {name!r}; take {' or '.join(near)}")
    return BOARDS[name]
