"""Makes the package that a leaderboard's server takes, from the prediction files of any trainer.

Predictions are checked by the board's own rules. What can be mended without changing a result is mended and told; the
rest is refused with the entry and the cure. OUT gets the zip and a sheet of what the board's form asks for, or nothing.

    defocus submit --board coco-test-dev --predictions work_dirs/run/test.segm.json \\
        --images data/coco/annotations/image_info_test-dev2017.json --method DefocusMambaBase \\
        --external-data "ImageNet-1K (pre-training)" --out work_dirs/submissions

With --rehearse the predictions are of the board's public split and --images is its ground truth: the package is
unpacked, scored, and compared with the score of the predictions.

    defocus submit --board cityscapes --rehearse --predictions work_dirs/run/val \\
        --images data/cityscapes/gtFine/val --method DefocusMambaBase --out work_dirs/rehearsal

--board list tells the state of every board.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from defocus_eval.boards import BOARDS, Rehearsal, Request, Submission, board_named, make_submission, rehearse
from defocus_eval.errors import InputError

# Of the scores of a rehearsal, as many are printed.
_SHOWN = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status: 1 for a rehearsal whose scores differ, 2 for refused input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.board == "list":
            print("\n".join(f"{name}: {board.status}" for name, board in BOARDS.items()))
            return 0
        board = board_named(options.board)
        absent = [name for name in ("predictions", "images", "method", "out") if getattr(options, name) is None]
        if absent:
            raise InputError(f"--{absent[0]} is missing; --help tells what it is")
        request = Request(
            board,
            options.predictions,
            options.images,
            options.method,
            options.external_data,
            options.task,
            tuple(options.known_empty),
            options.decimals,
            options.categories,
            options.predictions_folder,
            options.labels,
        )
        print(board.status, flush=True)
        if options.rehearse:
            return _report_rehearsal(rehearse(request, options.out))
        _report(make_submission(request, options.out))
    except InputError as error:
        parser.error(str(error))
    return 0


def _report(submission: Submission) -> None:
    content = submission.content
    for title, items in (("Mended", content.mends), ("Note", content.notes)):
        for item in items:
            print(f"{title}: {item}")
    print(f"Wrote {submission.path}: {content.summary}")
    print(f"Wrote {submission.sheet}: what the board's form asks for")


def _report_rehearsal(rehearsal: Rehearsal) -> int:
    _report(rehearsal.submission)
    differences = rehearsal.differences
    shown = list(dict.fromkeys([*differences, *rehearsal.direct]))[:_SHOWN]
    print("\n| score | predictions | unpacked package |\n| --- | --- | --- |")
    for name in shown:
        print(f"| {name} | {_number(rehearsal.direct.get(name))} | {_number(rehearsal.packaged.get(name))} |")
    if not differences:
        print(f"\nRehearsed: all {len(rehearsal.direct)} scores of the package are those of the predictions.")
        return 0
    print(f"\n{len(differences)} of {len(rehearsal.direct)} scores differ: {rehearsal.reason or 'they must not'}.")
    return 0 if rehearsal.reason else 1


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, fromfile_prefix_chars="@"
    )
    add = parser.add_argument
    add("--board", required=True, help=f"{', '.join(BOARDS)}, or list")
    add("--predictions", type=Path, help="a file of COCO results or panoptic annotations, or a folder of PNGs")
    add("--images", type=Path, help="the images to answer: the board's JSON, or the folder of images or label maps")
    add("--method", help="name of the algorithm, a part of the package's name")
    add("--out", type=Path, help="folder of the package")
    add(
        "--external-data",
        default="",
        metavar="TEXT",
        help="every data set beside the board's own that went into the model, pre-training too, or none",
    )
    add("--task", choices=("bbox", "segm"), help="where the predictions hold boxes and masks")
    add(
        "--known-empty",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="ids or file names of the images in which nothing was found, all, or @FILE with one a line",
    )
    add("--decimals", type=int, metavar="N", help="round boxes to N digits of a pixel; COCO recommends 1")
    add("--categories", type=Path, metavar="JSON", help="a JSON whose categories count instead of those of --images")
    add("--predictions-folder", type=Path, metavar="FOLDER", help="where the PNGs of panoptic predictions lie")
    add("--labels", choices=("board", "train"), help="label maps hold the board's labels, or those of training from 0")
    add("--rehearse", action="store_true", help="on the board's public split: package, unpack, score, compare")
    return parser
