"""Says, without a GPU, what the Triton kernels compile to: registers, spills, instructions, memory, and about how long.

Every operation is called at the published sizes on tensors that are not there; what its launchers ask for is compiled
with Triton's own ptxas and counted in the machine code. A Mamba block is followed as a whole, ours and the released
way.

Example:
    defocus kernel-report --arch sm_90 --out work_dirs/kernels.json
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from backbones.kernel_report.binary import missing_tools
from backbones.kernel_report.cards import CARDS
from backbones.kernel_report.limits import limits
from backbones.kernel_report.report import DTYPES, report
from backbones.kernel_report.tables import markdown, replace_tables
from defocus_eval.files import write_text


def _show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K  {line}", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=CARDS, default=list(CARDS), help="default: all")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: all")
    parser.add_argument("--kernel", default="", help="only kernels with this in their name, and no block")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile (default: cores)")
    parser.add_argument("--out", type=Path, help="JSON with all that was found")
    parser.add_argument("--page", type=Path, help="Markdown file whose tables are replaced, as docs/kernels.md")
    parser.add_argument("--limits", type=Path, help="JSON that the tests hold the kernels to")
    args = parser.parse_args(arguments)
    missing = missing_tools()
    if missing:
        parser.error(missing)
    whole = not args.kernel
    if args.limits and not (whole and len(args.arch) == len(args.dtype) == 1):
        parser.error("--limits takes one --arch and one --dtype, and no --kernel")
    reports = [
        report(
            arch, args.dtype, args.kernel, with_block=whole, with_extremes=whole, workers=args.workers, progress=_show
        )
        for arch in args.arch
    ]
    _show("\r")
    text = markdown(reports)
    print(text)
    if args.out:
        write_text(args.out, json.dumps(reports, indent=1))
    if args.page:
        write_text(args.page, replace_tables(args.page.read_text(), text))
    if args.limits:
        write_text(args.limits, json.dumps(limits(reports[0]), indent=1) + "\n")
    return 0
