"""What all demos share: steps that are commands of their own, from drawn data to a page with scores."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from backbones.precision import choose_bf16

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """A command of a demo.

    Attributes:
        title: What it does.
        command: Its words; each becomes a string.
        environment: Instead of this process's own.
        unless: What it leaves at its end: where that is there, nothing is run.
        newer_than: What it starts from: where ``unless`` is older, it is run all the same.
    """

    title: str
    command: list
    environment: dict[str, str] | None = None
    unless: Path | None = None
    newer_than: Path | None = None


@dataclass(frozen=True)
class Demo:
    """A training on drawn shapes, by what it reads and leaves; all paths are below the repository's root.

    Attributes:
        config: Config or recipe of the training.
        data: Folder of the drawn set, which all demos share.
        images: Folder of the images that are scored.
        annotations: Ground truth, as `defocus evaluate` takes it.
        work_dir: Where all is left.
        final: The checkpoint that is scored.
        predictions: What scoring leaves.
        log: The training's, below ``work_dir``; a pattern where each resumed part has its own.
        threshold: Lowest score that is drawn; None where predictions are label maps.
        classes: Names of the labels of label maps.
    """

    config: str
    data: Path
    images: Path
    annotations: Path
    work_dir: Path
    final: Path
    predictions: Path
    log: str
    threshold: float | None = None
    classes: tuple[str, ...] = ()

    def run(self, steps: Iterable[Step]) -> None:
        """Draws the data, trains and scores by ``steps``, draws what came of it, and writes the page.

        Args:
            steps: From the data to ``final`` and ``predictions``; each is asked for when those before it are done.
        """
        draw = [sys.executable, "tools/make_shapes.py", self.data, "--train", "2000", "--size", "160"]
        run_step(Step("Drawing the data", draw))
        for step in steps:
            run_step(step)
        for step in self._results():
            run_step(step)
        print(f"\nLook at {self.work_dir}/report.html, {self.work_dir}/predictions.png and {self.work_dir}/curves.png")

    def _results(self) -> Iterator[Step]:
        """Pictures, the official table, and the page."""
        scored = ["--annotations", self.annotations, "--predictions", self.predictions]
        scored += ["--classes", *self.classes] if self.classes else []
        logs = sorted(self.work_dir.glob(self.log)) if "*" in self.log else [self.work_dir / self.log]
        show = [sys.executable, f"tools/show_{'segmentation' if self.threshold is None else 'results'}.py", *scored]
        show += ["--images", self.images]
        show += [] if self.threshold is None else ["--score-threshold", f"{self.threshold:g}"]
        yield Step("Drawing predictions and curves", [*show, "--out", self.work_dir, "--log", *logs])
        evaluate = [sys.executable, "tools/evaluate.py", *scored, "--json", self.work_dir / "scores.json"]
        yield Step("The official scores", evaluate)
        page = [sys.executable, "tools/report.py", *scored, "--images", self.images]
        page += ["--out", self.work_dir / "report.html", "--config", self.config, "--checkpoint", self.final]
        yield Step("Writing the page", [*page, "--log", *logs])


def openmmlab_steps(package: ModuleType, demo: Demo, test_options: list) -> Iterator[Step]:
    """Trains with mmdet's or mmseg's own ``tools/`` until ``demo.final`` is there, and scores that checkpoint."""
    tools = Path(package.__file__).parent / ".mim" / "tools"
    environment = mmcv_environment()
    train = [sys.executable, tools / "train.py", demo.config, "--work-dir", demo.work_dir, "--resume"]
    title = f"Training with {package.__name__}'s tools/train.py"
    yield Step(title, [*train, *fastest_precision()], environment, unless=demo.final)
    test = [sys.executable, tools / "test.py", demo.config, demo.final, "--work-dir", demo.work_dir / "test"]
    yield Step(f"Scoring the checkpoint with {package.__name__}'s tools/test.py", [*test, *test_options], environment)


def training_environment() -> dict[str, str]:
    """This process's own, less what slows a training on a CPU."""
    # A step there asks for the same large blocks again and again: glibc is to keep them, not to return each.
    return {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), **os.environ}


def mmcv_environment() -> dict[str, str]:
    """The environment for tools of mmdet and mmseg: on the GPU if there is one and mmcv was built for it."""
    from mmcv.ops import get_compiling_cuda_version

    environment = training_environment()
    if torch.cuda.is_available() and get_compiling_cuda_version() == "not available":
        print("Notice: mmcv was built without CUDA (no nvcc when it was set up), so this runs on the CPU")
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def fastest_precision() -> list[str]:
    """Options for mmdet's and mmseg's training: bf16 where this machine trains faster in it, which is measured."""
    bf16, why = choose_bf16()
    print(why)
    return ["--cfg-options", "optim_wrapper.type=Bf16OptimWrapper"] if bf16 else []


def run_step(step: Step) -> None:
    """Runs a command, or nothing where what it leaves is there.

    Raises:
        SystemExit: The command failed or was interrupted; the message says what to do next.
    """
    done = step.unless is not None and step.unless.exists()
    if done and step.newer_than is not None:
        done = step.unless.stat().st_mtime_ns >= step.newer_than.stat().st_mtime_ns
    if done:
        print(f"\n== {step.title}: done before, {step.unless} is there (make clean-demo starts afresh)", flush=True)
        return
    command = [str(part) for part in step.command]
    print(f"\n== {step.title}\n   {shlex.join(['python', *command[1:]])}", flush=True)
    start = time.monotonic()
    try:
        code = subprocess.run(command, env=step.environment).returncode
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")
    if code != 0:
        sys.exit(f"{step.title} failed (exit status {code}); the same command goes on from here once that is mended.")
    print(f"== {step.title}: {time.monotonic() - start:.0f} s", flush=True)
