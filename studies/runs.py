"""All runs of a study: processes of one thread each, two at a time; what is done is kept."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """A network trained from a seed.

    Attributes:
        variant: Key of the network.
        seed: Of its initial values and of its training.
    """

    variant: str
    seed: int

    def file(self, folder: Path, suffix: str = ".json") -> Path:
        """Where the run leaves its result, or its weights or log."""
        return folder / f"{self.variant}_seed{self.seed}{suffix}"


class RunFailed(RuntimeError):
    """A run ended without a result; the message has the end of its log."""


def read_result(run: Run, folder: Path, settings: dict) -> dict | None:
    """The result of a run that was made with these settings, None where there is none."""
    try:
        result = json.loads(run.file(folder).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result["settings"] == settings else None


def run_missing(
    wanted: Mapping[Run, dict],
    folder: Path,
    command: Sequence[str],
    jobs: int,
    describe: Callable[[dict], str],
) -> None:
    """Makes the results that ``folder`` lacks, saying after each how much is left.

    Args:
        wanted: The settings that the result of each run has; one with others is made again. In the order of making.
        folder: Of the results; made if it is not there.
        command: Makes one result, given ``--variant`` and ``--seed`` behind it.
        jobs: Processes at a time.
        describe: A result in a few words.

    Raises:
        RunFailed: A run left no result. Those under way are ended, those that are done are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run, settings in wanted.items() if read_result(run, folder, settings) is None]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} runs were done before", flush=True)
    start, waiting, active = time.monotonic(), list(missing), {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.pop(0)
                active[run] = _start(run, folder, command)
            for run in [run for run, process in active.items() if process.poll() is not None]:
                code, result = active.pop(run).returncode, read_result(run, folder, wanted[run])
                if code != 0 or result is None:
                    raise RunFailed(_failure(run, folder, code))
                done = len(missing) - len(waiting) - len(active)
                left = (time.monotonic() - start) / done * (len(missing) - done)
                said = f"{run.variant}, seed {run.seed}: {describe(result)} in {result['seconds']:.0f} s"
                print(f"[{done}/{len(missing)}] {said}; about {left / 60:.0f} min left", flush=True)
            time.sleep(0.2)
    finally:
        for process in active.values():
            process.terminate()
            process.wait()


def _start(run: Run, folder: Path, command: Sequence[str]) -> subprocess.Popen:
    # Two runs of one thread each end sooner than one after the other with two, and do not depend on the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*command, "--variant", run.variant, "--seed", str(run.seed)]
    with run.file(folder, ".log").open("w") as log:
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _failure(run: Run, folder: Path, code: int) -> str:
    log = run.file(folder, ".log")
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"{run.variant}, seed {run.seed}, ended with status {code} and without a result; the end of {log}:\n{tail}"
