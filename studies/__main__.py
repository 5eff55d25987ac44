"""Re-runs the argument of the De-focus paper (arXiv 2406.04342) in miniature.

    python -m studies [--scale full|quick] [--jobs N]

trains small networks on drawn images, two at a time with one thread each, and writes tables and pictures of what comes
out into work_dirs/study/SCALE. Results are kept by network and seed: an interrupted study goes on where it was.
`--variant KEY --seed N` makes one result.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch

from studies.report import write_report
from studies.runs import Run, RunFailed, read_result, run_missing
from studies.scales import SCALES, Scale
from studies.training import identity, make_result, write_result
from studies.variants import VARIANTS


def main() -> None:
    """Runs the study, or with ``--variant`` one run of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each (default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, help="make one result, in this process")
    parser.add_argument("--seed", type=int, default=0, help="of the one result")
    parser.add_argument("--out", type=Path, help="folder of the results (default: work_dirs/study/SCALE)")
    arguments = parser.parse_args()
    folder = arguments.out or Path("work_dirs/study") / arguments.scale
    scale = SCALES[arguments.scale]
    if arguments.variant is not None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        write_result(
            *make_result(arguments.variant, VARIANTS[arguments.variant], arguments.seed, scale.settings), folder
        )
        return
    command = [sys.executable, "-m", "studies", "--scale", arguments.scale, "--out", str(folder)]
    # A killed study ends its runs like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_study(scale, folder, command, arguments.jobs)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")
    except RunFailed as error:
        sys.exit(f"{error}\nThe same command goes on from here once that is mended.")


def run_study(scale: Scale, folder: Path, command: list[str], jobs: int) -> None:
    """Makes what results are missing, then the tables and pictures: of those that are there, if it is interrupted."""
    # By seed first: a study that is cut short has all networks, of fewer seeds.
    wanted = {
        Run(key, seed): identity(VARIANTS[key], scale.settings) for seed in range(scale.seeds) for key in scale.variants
    }
    try:
        run_missing(wanted, folder, command, jobs, describe=lambda result: f"accuracy {result['accuracy']:.3f}")
    finally:
        results = {key: [] for key in scale.variants}
        for run, settings in wanted.items():
            if (result := read_result(run, folder, settings)) is not None:
                results[run.variant].append(result)
        if any(results.values()):
            print(write_report(results, scale.settings, folder))


if __name__ == "__main__":
    main()
