"""Where a result is from: files with their hashes, the code's commit, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from defocus_eval.errors import InputError
from defocus_eval.files import sha256

# What the scores depend on.
PACKAGES = ("numpy", "pycocotools", "Pillow")
LONGEST_CONFIG = 200_000


@dataclass(frozen=True)
class RunFiles:
    """What belongs to a run beside its predictions.

    Attributes:
        name: How the run is called on the page.
        predictions: What was scored.
        logs: Training logs, of a resumed run all of them.
        config: Or None.
        checkpoint: Or None.
    """

    name: str
    predictions: Path
    logs: tuple[Path, ...] = ()
    config: Path | None = None
    checkpoint: Path | None = None


def run_facts(run: RunFiles) -> list[tuple[str, str]]:
    """Name and value of what is known about a run's files.

    Raises:
        InputError: The config or checkpoint cannot be read.
    """
    facts = [("predictions", _describe(run.predictions))]
    if run.config:
        facts.append(("config", str(run.config)))
    if run.checkpoint:
        facts.append(("checkpoint", _describe(run.checkpoint)))
    if run.logs:
        facts.append(("training log", ", ".join(map(str, run.logs))))
    return facts


def common_facts(annotations: Path, images: Path | None, command: Sequence[str]) -> list[tuple[str, str]]:
    """Name and value of what is the same for all runs of a page."""
    facts = [("ground truth", _describe(annotations))]
    if images:
        facts.append(("images", str(images)))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return [
        *facts,
        ("commit", commit() or "not in a git checkout"),
        ("machine", machine()),
        ("software", f"Python {platform.python_version()}, {versions}"),
        ("command", " ".join(command)),
    ]


def config_text(path: Path) -> str:
    """A config as it stands.

    Raises:
        InputError: It cannot be read as text.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); give the run's config, a text file") from error
    return text if len(text) <= LONGEST_CONFIG else text[:LONGEST_CONFIG] + "\n… cut"


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Commit of the checkout that holds ``folder``, and whether tracked files differ from it; None if there is none."""
    found = _git(folder, "rev-parse", "HEAD")
    if found is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{found} with changes" if changed else found


def machine() -> str:
    """Processor, cores at hand, memory, and GPUs where there are some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{cores} × {_processor()}", platform.platform(terse=True)]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        parts.insert(1, f"{memory / 2**30:.0f} GiB")
    gpus = _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if gpus:
        parts.append(", ".join(gpus.splitlines()))
    return "; ".join(parts)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not a Linux
        pass
    return platform.processor() or platform.machine()


def _describe(path: Path) -> str:
    if path.is_dir():
        return f"{path}, {sum(1 for file in path.rglob('*') if file.is_file()):,} files"
    if not path.is_file():
        # A prefix of mmdet's files.
        found = sorted(path.parent.glob(f"{path.name}.*.json"))
        if not found:
            raise InputError(f"{path} does not exist; give the file of the run")
        return "; ".join(_describe(part) for part in found)
    written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    size = path.stat().st_size
    shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    return f"{path}, {shown}, written {written:%Y-%m-%d %H:%M} UTC, sha256 {sha256(path)}"


def _git(folder: Path, *arguments: str) -> str | None:
    return _run("git", "-C", str(folder), *arguments)


def _run(*command: str) -> str | None:
    """What a command prints; None if it is not there or fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
