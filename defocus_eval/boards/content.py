"""What is asked of a board, and what goes into its package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from defocus_eval.boards.archive import Member
from defocus_eval.boards.rules import Board


@dataclass(frozen=True)
class Request:
    """A submission to make.

    Attributes:
        board: Where it goes.
        predictions: As `defocus_eval.formats.read_predictions` reads them; for Cityscapes' instances the folder of
            text files and masks.
        images: The images to answer: a COCO json, with annotations or without, or a folder of images or label maps.
        method: Name of the algorithm, a part of the package's name.
        external_data: Every data set beside the board's own that went into the model, or "none".
        task: "bbox" or "segm", where the predictions hold both.
        known_empty: Ids or file names of the images in which nothing was found; "all" for every one.
        decimals: Digits of a pixel that boxes are rounded to; None keeps all.
        categories: A JSON whose categories count instead of those of ``images``.
        folder: Where the PNGs of panoptic predictions lie; without it, it is searched for.
        labels: What label maps hold, the board's labels or those that nets are trained on (numbered from 0); None
            believes what they look like, and refuses what looks wrong.
        rehearsal: The predictions are of the board's public split, and ``images`` is its ground truth.
    """

    board: Board
    predictions: Path
    images: Path
    method: str
    external_data: str = ""
    task: str | None = None
    known_empty: Sequence[str] = ()
    decimals: int | None = None
    categories: Path | None = None
    folder: Path | None = None
    labels: Literal["board", "train"] | None = None
    rehearsal: bool = False

    @property
    def split(self) -> str:
        """The images that are answered, in the words of the board."""
        return self.board.rehearsal if self.rehearsal else self.board.split

    @property
    def package(self) -> str:
        """Name of the package, less its ending."""
        return self.board.package.format(split=self.split, method=self.method)


@dataclass
class Content:
    """What goes into a package.

    Attributes:
        members: Its files, made while they are written.
        mended: How often each thing was mended; filled while `members` are made.
        task: What is scored of it, in the words of `defocus_eval.evaluate`.
        summary: What it holds, in words.
        notes: What the user should know.
        cut: Detections were left out that the board does not count.
    """

    members: Iterable[Member] = ()
    mended: Counter = field(default_factory=Counter)
    task: str = ""
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    cut: bool = False

    @property
    def mends(self) -> list[str]:
        """What was mended, with its count, in words."""
        return [what.format(count=f"{count:,}") for what, count in self.mended.items() if count]
