"""Runs the steps of a demo, each a command of its own, and says what it runs and how long it took."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from backbones.precision import choose_bf16

ROOT = Path(__file__).resolve().parent.parent


def draw_shapes(folder: Path) -> None:
    """Draws the set that all demos share into ``folder``; one that is there is kept."""
    command = [sys.executable, "tools/make_shapes.py", folder, "--train", "2000", "--size", "160"]
    run_step("Drawing the data", command)


def mmcv_environment() -> dict[str, str]:
    """The environment for tools of mmdet and mmseg: on the GPU if there is one and mmcv was built for it."""
    from mmcv.ops import get_compiling_cuda_version

    # A step on a CPU asks for the same large blocks again and again: glibc is to keep them, not to return each.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), **os.environ}
    if torch.cuda.is_available() and get_compiling_cuda_version() == "not available":
        print("Notice: mmcv was built without CUDA (no nvcc when it was set up), so this runs on the CPU")
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def fastest_precision() -> list[str]:
    """Options for mmdet's and mmseg's training: bf16 where this machine trains faster in it, which is measured."""
    bf16, why = choose_bf16()
    print(why)
    return ["--cfg-options", "optim_wrapper.type=Bf16OptimWrapper"] if bf16 else []


def train_and_test(
    package: str, tools: Path, config_file: str, work_dir: Path, final: Path, test_options: Sequence[str | Path]
) -> None:
    """Trains with the ``tools/`` of mmdet or mmseg until ``final`` is there, and scores that checkpoint."""
    environment = mmcv_environment()
    train = [sys.executable, tools / "train.py", config_file, "--work-dir", work_dir, "--resume", *fastest_precision()]
    run_step(f"Training with {package}'s tools/train.py", train, environment, unless=final)
    test = [sys.executable, tools / "test.py", config_file, final, "--work-dir", work_dir / "test", *test_options]
    run_step(f"Scoring the checkpoint with {package}'s tools/test.py", test, environment)


def show(tool: str, files: Sequence[str | Path], work_dir: Path, logs: Sequence[Path]) -> None:
    """Draws predictions and curves with ``tools/<tool>`` into ``work_dir``."""
    command = [sys.executable, f"tools/{tool}", *files, "--out", work_dir, "--log", *logs]
    run_step("Drawing predictions and curves", command)


def report(
    scored: Sequence[str | Path], images: Path, work_dir: Path, logs: Sequence[Path], config_file: str, final: Path
) -> None:
    """Prints the official table, writes the page, and says what there is to look at.

    Args:
        scored: What `tools/evaluate.py` and `tools/report.py` are told of predictions and ground truth.
        images: Folder of the images.
        work_dir: Where all is left.
        logs: Of the training.
        config_file: Of the training.
        final: The checkpoint.
    """
    command = [sys.executable, "tools/evaluate.py", *scored, "--json", work_dir / "scores.json"]
    run_step("The official scores", command)
    command = [sys.executable, "tools/report.py", *scored, "--images", images, "--out", work_dir / "report.html"]
    command += ["--config", config_file, "--checkpoint", final, "--log", *logs]
    run_step("Writing the page", command)
    print(f"\nLook at {work_dir}/report.html, {work_dir}/predictions.png and {work_dir}/curves.png")


def run_step(
    title: str,
    command: list,
    environment: dict[str, str] | None = None,
    unless: Path | None = None,
    newer_than: Path | None = None,
) -> None:
    """Runs ``command``; if it fails or is interrupted, ends the program with what to do next.

    Args:
        title: What the step does.
        command: The program and its arguments; all become strings.
        environment: Instead of this process's own.
        unless: What the step leaves at its end; where that is there, nothing is run.
        newer_than: What the step starts from; where ``unless`` is older than that, the step is run again.
    """
    done = unless is not None and unless.exists()
    if done and newer_than is not None:
        done = unless.stat().st_mtime_ns >= newer_than.stat().st_mtime_ns
    if done:
        print(f"\n== {title}: done before, {unless} is there (make clean-demo starts afresh)", flush=True)
        return
    command = [str(part) for part in command]
    print(f"\n== {title}\n   {shlex.join(['python', *command[1:]])}", flush=True)
    start = time.monotonic()
    try:
        code = subprocess.run(command, env=environment).returncode
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")
    if code != 0:
        sys.exit(f"{title} failed (exit status {code}); the same command goes on from here once that is mended.")
    print(f"== {title}: {time.monotonic() - start:.0f} s", flush=True)
