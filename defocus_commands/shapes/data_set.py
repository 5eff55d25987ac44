"""A whole set, drawn once with its settings, or kept where it is there."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing.pool import Pool
from pathlib import Path

from defocus_commands.shapes.files import VERSION, image_files, write_split
from defocus_commands.shapes.scene import SPLITS

MIN_SIZE = 32


def make_shapes(
    out_dir: str | Path,
    train: int = 1500,
    val: int = 150,
    size: int = 192,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Draws the data set, or keeps the one that is there if it was drawn with the same settings.

    Everything is drawn into a sibling folder that takes the name `out_dir` at the very end, so an interrupted
    run leaves no half-made set.

    Args:
        out_dir: Folder to make.
        train: Number of training images.
        val: Number of validation images.
        size: Long side of the images in pixels, at least 32.
        seed: Non-negative seed.
        workers: Number of processes. The result does not depend on it. More than one needs this module to be
            importable by name, and a main program under `if __name__ == "__main__"`.
        overwrite: Replace a set that was drawn with other settings.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: An argument is out of range, or `out_dir` is a file.
        FileExistsError: `out_dir` holds something else than this very set.
    """
    out_dir = Path(out_dir)
    for name, value, least in (
        ("train", train, 0),
        ("val", val, 0),
        ("size", size, MIN_SIZE),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file; give a folder to draw into")

    settings = {"tool": "make_shapes", "version": VERSION}
    settings |= {"train": train, "val": val, "size": size, "seed": seed}
    if _is_reusable(out_dir, settings, overwrite):
        print(f"{out_dir} already holds this data set; nothing to draw")
        return out_dir

    target = out_dir.resolve()
    partial_dir = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial_dir, ignore_errors=True)
    try:
        with _start_pool(workers) if workers > 1 else nullcontext() as pool:
            for split, count in zip(SPLITS, (train, val)):
                write_split(partial_dir, split, count, size, seed, pool)
        (partial_dir / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        if target.exists():
            replaced = partial_dir.with_name(f"{partial_dir.name}-replaced")
            target.rename(replaced)
            partial_dir.rename(target)
            shutil.rmtree(replaced)
        else:
            partial_dir.rename(target)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
    print(f"drew {train} training and {val} validation images into {out_dir}")
    return out_dir


def _start_pool(workers: int) -> Pool:
    # Spawned, because OpenCV's own threads do not survive a fork; deaf to Ctrl-C, left to the main process.
    return multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _is_reusable(out_dir: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `out_dir` holds the set of `settings`; raises if it holds what may not be replaced."""
    if not out_dir.exists() or not any(out_dir.iterdir()):
        return False
    try:
        found = json.loads((out_dir / "settings.json").read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("tool") != settings["tool"]:
        raise FileExistsError(
            f"{out_dir} is not empty and was not made by this tool (it lacks its settings.json); give another folder"
        )
    if overwrite and found != settings:
        return False
    if found != settings:
        changes = ", ".join(
            f"{key} {found.get(key)} -> {value}" for key, value in settings.items() if found.get(key) != value
        )
        raise FileExistsError(
            f"{out_dir} was drawn with other settings ({changes}); pass --overwrite (overwrite=True) to "
            "replace it, or give another folder"
        )
    missing = [path for path in _expected_files(out_dir, settings) if not path.exists()]
    if missing and not overwrite:
        raise FileExistsError(
            f"{out_dir} lacks {len(missing)} of its files, {missing[0]} among them; pass --overwrite "
            "(overwrite=True) to draw it again"
        )
    return not missing


def _expected_files(out_dir: Path, settings: dict) -> Iterator[Path]:
    for split in SPLITS:
        for kind in ("instances", "panoptic"):
            yield out_dir / "annotations" / f"{kind}_{split}.json"
        for index in range(1, settings[split] + 1):
            yield from image_files(out_dir, split, index)
