"""What to run first on a new machine: which kernels will run here, whether they are right, and how fast they are.

    python -m backbones.doctor
    python -m backbones.doctor --out doctor.json

Prints a page in Markdown, to read and to paste into a report: versions, devices and compilers; the backend that each
operation takes, and why not another; each backend that runs here against the definition, output and all gradients, at
small sizes and at those of the base models; times and memory. A few minutes. Exit status 1 says that something is
wrong.
"""

import argparse
import faulthandler
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from backbones.benchmark.cases import CASES
from backbones.doctor.diagnosis import Diagnosis, conclude, examine
from backbones.doctor.records import Finding
from backbones.doctor.report import to_json, to_markdown
from backbones.doctor.surroundings import describe_machine, devices
from defocus_eval.files import write_text

# As shells count a program that Ctrl-C has ended.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m backbones.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all of it as JSON, too")
    out = parser.parse_args(arguments).out
    if out is not None and not out.parent.is_dir():
        parser.error(f"--out: there is no folder {out.parent}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 would run kernels a number at a time, for hours: unset it")
    # What is refused and built is said by the page.
    logging.getLogger("backbones").setLevel(logging.ERROR)
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {text}", file=sys.stderr, flush=True)

    diagnosis = Diagnosis()
    diagnosis.machine, diagnosis.findings = describe_machine(say)
    status = None
    try:
        examine(CASES, devices(), say, diagnosis)
    except KeyboardInterrupt:
        diagnosis.findings.append(Finding("note", "this was interrupted, and is what was found until then"))
        status = INTERRUPTED
    diagnosis.findings += conclude(diagnosis)
    diagnosis.machine["this took"] = f"{time.monotonic() - start:.0f} s"
    if out is not None:
        write_text(out, to_json(diagnosis))
    print(to_markdown(diagnosis), end="")
    return diagnosis.status if status is None else status


if __name__ == "__main__":
    # A kernel that ends the process leaves no page, but says where it was.
    faulthandler.enable()
    sys.exit(main())
