"""Making a package, and rehearsing it: unpacked and scored, it must give what the predictions give."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from defocus_eval.boards import cityscapes_instances, detections, label_maps, panoptic
from defocus_eval.boards.archive import unpack, write_zip
from defocus_eval.boards.content import Content, Request
from defocus_eval.boards.images import wanted_images
from defocus_eval.errors import InputError
from defocus_eval.evaluate import evaluate
from defocus_eval.files import replacing, sha256
from defocus_eval.formats import Truth

_PREPARE: dict[str, Callable[[Request, Truth], Content]] = {
    "detections": detections.prepare,
    "panoptic": panoptic.prepare,
    "label maps": label_maps.prepare,
    "cityscapes instances": cityscapes_instances.prepare,
}


# Of a result, what has scores beside the official ones.
_PARTS = ("per_class", "fixed")
# Numbers among them that are none: where a threshold lies, how many detections an image has.
_NO_SCORES = ("score_of", "most_of")


@dataclass(frozen=True)
class Submission:
    """A package that was written.

    Attributes:
        request: What it was made of.
        path: The zip.
        sheet: The text beside it: what the board's form asks for, and what was done.
        sha256: Hash of the zip.
        content: What it holds, and what was mended.
    """

    request: Request
    path: Path
    sheet: Path
    sha256: str
    content: Content


@dataclass(frozen=True)
class Rehearsal:
    """The scores of predictions and of their package.

    Attributes:
        submission: The package.
        direct: Scores of the predictions as they are, by name.
        packaged: Scores of the unpacked package.
        reason: Why they may differ: what a package leaves out or rounds on purpose; None if they may not.
    """

    submission: Submission
    direct: Mapping[str, float | None]
    packaged: Mapping[str, float | None]
    reason: str | None

    @property
    def differences(self) -> dict[str, tuple[float | None, float | None]]:
        """Both scores, direct and packaged, where they are not the same number."""
        names = [*self.direct, *(name for name in self.packaged if name not in self.direct)]
        pairs = {name: (self.direct.get(name), self.packaged.get(name)) for name in names}
        # Not a number is equal to nothing, itself included.
        return {name: pair for name, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}


def make_submission(request: Request, out: Path) -> Submission:
    """Checks predictions by the board's rules and writes its package and a sheet into ``out``, both or neither.

    Raises:
        InputError: Something is missing or not what the board takes; the message names the entry and the cure.
    """
    _check_request(request)
    path, sheet = out / f"{request.package}.zip", out / f"{request.package}.md"
    _check_out(out, path, sheet)
    truth = wanted_images(request)
    content = _PREPARE[request.board.kind](request, truth)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The sheet comes first to its place: a zip is never without it.
        with replacing(path) as package, replacing(sheet) as text:
            write_zip(package, content.members)
            digest = sha256(package)
            submission = Submission(request, path, sheet, digest, content)
            text.write_text(_sheet_of(submission, package.stat().st_size), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write into {out} ({error.strerror or error}); give another --out") from error
    return submission


def rehearse(request: Request, out: Path) -> Rehearsal:
    """Makes the package of the board's public split, unpacks it elsewhere, and scores it and the predictions.

    Raises:
        InputError: As `make_submission`.
    """
    submission = make_submission(replace(request, rehearsal=True), out)
    board = request.board
    with tempfile.TemporaryDirectory() as folder:
        names = unpack(submission.path, Path(folder))
        jsons = [Path(folder) / name for name in names if name.endswith(".json")]
        packaged = _scores(request, jsons[0] if jsons else Path(folder), None, submission.content.task)
    direct = _scores(request, request.predictions, request.folder, submission.content.task)
    reasons = []
    if submission.content.cut:
        limit = f"{board.per_image} detections an image" if board.per_image else f"{board.per_class} a class"
        reasons.append(f"{board.name} counts the best {limit} alone, pycocotools more")
    if request.decimals is not None:
        reasons.append(f"boxes were rounded to {request.decimals} digits")
    if request.labels == "train":
        reasons.append("labels were translated")
    return Rehearsal(submission, direct, packaged, "; ".join(reasons) or None)


def _check_request(request: Request) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", request.method):
        raise InputError(
            f"--method {request.method!r} becomes a part of the file's name; write letters, digits, dots and hyphens"
        )
    if not request.rehearsal and not request.external_data.strip():
        raise InputError(
            "the data that went into the model beside the board's own must be stated; name every set with "
            "--external-data 'ImageNet-1K …' (pre-training counts), or say --external-data none"
        )
    for name, value, kinds in (
        ("--task", request.task, ("detections",)),
        ("--known-empty", request.known_empty or None, ("detections",)),
        ("--decimals", request.decimals, ("detections",)),
        ("--labels", request.labels, ("label maps", "cityscapes instances")),
    ):
        if value is not None and request.board.kind not in kinds:
            raise InputError(f"{name} does nothing for {request.board.name}, which takes {request.board.kind}; drop it")
    if request.decimals is not None and request.decimals < 0:
        raise InputError(f"--decimals is a number of digits, got {request.decimals}; COCO recommends 1")


def _check_out(out: Path, *files: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with --out")
    for file in files:
        if file.exists():
            raise InputError(f"{file} is there already; remove it, or give another --out or --method")


def _scores(request: Request, predictions: Path, folder: Path | None, task: str) -> dict[str, float | None]:
    scores = evaluate(predictions, request.images, tasks=[task], samples=0, predictions_folder=folder)[task]
    return dict(_flatten(scores))


def _flatten(scores: Mapping, prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """The scores of a result by their path, those of classes too; not its analyses."""
    for name, value in scores.items():
        if isinstance(value, Mapping) and (prefix or name in _PARTS):
            yield from _flatten(value, f"{prefix}{name}.")
        elif (value is None or isinstance(value, int | float)) and not name.startswith(_NO_SCORES):
            yield prefix + name, value


def _sheet_of(submission: Submission, size: int) -> str:
    request, content = submission.request, submission.content
    facts = {
        "Board": request.board.title,
        "State": request.board.status,
        "Split": request.split,
        "Method": request.method,
        "External data": request.external_data.strip() or "not stated",
        "Content": content.summary,
        "Size": f"{size:,} bytes",
        "SHA-256": submission.sha256,
    }
    lines = [f"# {submission.path.name}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    for title, items in (("Mended", content.mends), ("Notes", content.notes)):
        if items:
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"
