"""Scores prediction files of any trainer by the official rules, and says what the errors are.

Boxes, masks and their boundaries (COCO, LVIS), panoptic quality, semantic segmentation (also ADE20K and Cityscapes):
what the files hold, and who wrote them, is recognised by their content. Prints tables in Markdown.

    defocus evaluate --predictions work_dirs/run/val.bbox.json \\
        --annotations data/coco/annotations/instances_val2017.json --json work_dirs/run/scores.json

With --against, the other run's scores, the differences with their intervals, and the images that changed most:

    defocus evaluate --predictions b/val.bbox.json --against a/val.bbox.json --annotations instances.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from defocus_eval.errors import InputError
from defocus_eval.evaluate import TASKS, evaluate, to_markdown
from defocus_eval.files import write_text

# Classes in the printed table; the files hold all.
SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    outputs = {kind: options.pop(kind) for kind in ("json", "markdown")}
    try:
        for path in filter(None, outputs.values()):
            _check_output(path)
        result = evaluate(**options)
        print(to_markdown(result, SHOWN))
        texts = {"json": json.dumps(result, indent=1, allow_nan=False) + "\n", "markdown": to_markdown(result)}
        for kind, path in outputs.items():
            if path:
                write_text(path, texts[kind])
                print(f"wrote {path}")
    except InputError as error:
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predictions",
        required=True,
        metavar="FILE",
        help="JSON of a trainer, folder of PNGs, or mmdet's outfile_prefix",
    )
    parser.add_argument(
        "--annotations", required=True, metavar="FILE", help="ground truth: JSON, or folder of label maps"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here, with all classes")
    parser.add_argument("--against", metavar="OTHER", help="predictions of another run to compare with")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"only these of {', '.join(TASKS)} (default: all)")
    parser.add_argument(
        "--samples", type=int, default=200, metavar="N", help="resampled sets for intervals, 0 for none (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resampling (default: 0)")
    parser.add_argument(
        "--level", type=float, default=0.95, metavar="SHARE", help="share inside an interval (default: 0.95)"
    )
    parser.add_argument("--predictions-folder", metavar="DIR", help="PNGs of panoptic predictions, where not found")
    parser.add_argument("--annotations-folder", metavar="DIR", help="the same of the ground truth")
    parser.add_argument("--against-folder", metavar="DIR", help="the same of the other run")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="names of labels, for label maps")
    parser.add_argument(
        "--ignore-label", type=int, default=255, metavar="N", help="that does not count, for label maps (default: 255)"
    )
    return parser


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} does not exist; make it, or write elsewhere")
