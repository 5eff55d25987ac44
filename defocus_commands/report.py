"""Writes a page about a run, or about two; model cards from result cards; the documents' tables of results.

A page is one HTML file that holds all that it shows: official scores with intervals, curves, classes, errors, the best,
worst and most changed images, the training, and where all of it is from. Any trainer's predictions will do.

Example:
    defocus report --predictions work_dirs/demo/predictions.bbox.json \
        --annotations data/shapes/annotations/instances_val.json --images data/shapes/val \
        --log work_dirs/demo/*/vis_data/scalars.json --out report.html
    defocus report --card results/dino_defocus-mamba-base_12e.release.json --out card
    defocus report --tables README.md results/README.md
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from defocus_eval.cards import TASKS, Card, headline_of, read_card, read_cards, update_tables, write_card
from defocus_eval.errors import InputError
from defocus_eval.files import write_text
from defocus_eval.pages import Question, RunFiles, write_page
from defocus_eval.pages.provenance import commit, machine

# Of the checkout, if this is one.
RESULTS = Path(__file__).resolve().parent.parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        if args.tables:
            _write_tables(args.tables)
        elif args.card:
            _need(args, "out")
            # The Hub's library is large and wanted here alone.
            from defocus_eval.hub import write_hub_files

            for path in write_hub_files([read_card(path) for path in args.card], args.out):
                print(f"wrote {path}")
        else:
            _need(args, "predictions", "annotations", "out")
            _write_page(args)
    except InputError as error:
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--predictions", type=Path, metavar="FILE", help="a page: file, folder or prefix of a trainer")
    kinds.add_argument("--card", type=Path, nargs="+", metavar="JSON", help="a model card: the model's result cards")
    kinds.add_argument(
        "--tables", type=Path, nargs="+", metavar="MD", help="documents whose result tables are to be filled"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="HTML file of the page, folder of the model card")
    page = parser.add_argument_group("page")
    page.add_argument("--annotations", type=Path, metavar="PATH", help="ground truth: JSON, or folder of label maps")
    page.add_argument("--images", type=Path, metavar="DIR", help="folder of the images; without it none are shown")
    page.add_argument("--against", type=Path, metavar="FILE", help="predictions of a run to compare with")
    page.add_argument("--title", help="of the page")
    page.add_argument("--name", help="what the run is called")
    page.add_argument("--classes", nargs="+", metavar="NAME", help="names of labels 0, 1, ..., for label maps")
    page.add_argument("--ignore-label", type=int, default=255, metavar="N", help="default: %(default)s, for label maps")
    page.add_argument("--annotations-folder", type=Path, metavar="DIR", help="PNGs of a panoptic ground truth")
    page.add_argument("--predictions-folder", type=Path, metavar="DIR", help="PNGs of panoptic predictions")
    page.add_argument("--log", type=Path, nargs="*", default=[], metavar="JSON", help="scalars.json or metrics.json")
    page.add_argument("--config", type=Path, metavar="FILE", help="of the run; its text is on the page")
    page.add_argument("--checkpoint", type=Path, metavar="FILE", help="of the run; its hash is on the page")
    for option, kind in (("name", str), ("folder", Path), ("config", Path), ("checkpoint", Path)):
        page.add_argument(f"--against-{option}", type=kind, metavar=option.upper(), help="the same of the other run")
    page.add_argument(
        "--against-log", type=Path, nargs="*", default=[], metavar="JSON", help="the same of the other run"
    )
    page.add_argument("--samples", type=int, default=200, metavar="N", help="resampled sets of images for intervals")
    page.add_argument("--images-shown", type=int, default=12, metavar="N", help="in each tab (default: %(default)s)")
    result = parser.add_argument_group("result card of the page's run, results/NAME.json")
    result.add_argument("--result", type=Path, metavar="JSON", help="file to write")
    result.add_argument("--task", choices=TASKS, help="what the run does")
    result.add_argument("--model", help="the backbone")
    result.add_argument("--method", help="what stands on it")
    result.add_argument("--data", nargs=2, metavar=("NAME", "SPLIT"), help="what was scored")
    result.add_argument("--schedule", help="how long it was trained")
    result.add_argument("--command", help="what gave the result")
    return parser


def _need(args: argparse.Namespace, *names: str) -> None:
    absent = [f"--{name}" for name in names if not getattr(args, name)]
    if absent:
        raise InputError(f"{', '.join(absent)} is missing; see --help")


def _write_page(args: argparse.Namespace) -> None:
    facts = ("task", "model", "method", "data", "schedule", "command")
    if args.result:
        _need(args, *facts)
    name = args.name or _name_of(args.config, args.predictions)
    runs = [RunFiles(name, args.predictions, tuple(args.log), args.config, args.checkpoint)]
    if args.against:
        other = args.against_name or _name_of(args.against_config, args.against)
        if other == name:
            other, name = f"{other}, before", f"{name}, now"
            runs[0] = RunFiles(name, args.predictions, tuple(args.log), args.config, args.checkpoint)
        files = (args.against, tuple(args.against_log), args.against_config, args.against_checkpoint)
        runs.insert(0, RunFiles(other, *files))
    question = Question(
        runs,
        args.annotations,
        args.images,
        args.title,
        ([args.against_folder] if args.against else []) + [args.predictions_folder],
        args.annotations_folder,
        args.classes,
        args.ignore_label,
        args.samples,
        args.images_shown,
    )
    evaluation = write_page(question, args.out, _command())
    print(f"wrote {args.out} ({os.path.getsize(args.out) / 1e6:.1f} MB)")
    if args.result:
        card = Card(
            name=args.result.stem,
            kind="own",
            task=args.task,
            model=args.model,
            method=args.method,
            data=dict(zip(("name", "split"), args.data)),
            schedule=args.schedule,
            scores=headline_of(evaluation),
            date=date.today().isoformat(),
            command=args.command,
            commit=commit(),
            machine=machine(),
            config=args.config and str(args.config),
        )
        write_card(card, args.result)
        print(f"wrote {args.result}")


def _command() -> list[str]:
    """What was typed: the file of a checkout is Python's to run, `defocus report` runs by itself."""
    program, *words = sys.argv
    start = ["python", shlex.quote(program)] if program.endswith(".py") else [program]
    return start + [shlex.quote(word) for word in words]


def _name_of(config: Path | None, predictions: Path) -> str:
    """What a run is called that has no name: like its config, or like the folder of its predictions."""
    return config.stem if config else predictions.resolve().parent.name


def _write_tables(documents: list[Path]) -> None:
    cards = read_cards(RESULTS)
    for path in documents:
        # Links lead from the document's folder.
        root = os.path.relpath(RESULTS.parent, path.resolve().parent).removeprefix(".")
        try:
            text = path.read_text()
        except OSError as error:
            raise InputError(f"cannot read {path} ({error.strerror}); give a document of the project") from error
        filled = update_tables(text, cards, f"{root}/" if root else "")
        if filled == text:
            print(f"{path}: nothing to change")
            continue
        write_text(path, filled)
        print(f"wrote {path}")
