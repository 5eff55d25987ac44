"""Writes an export that was checked, and a manifest beside it; or nothing."""

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import backbones
from backbones.export.check import Checked, ExportError, check
from backbones.export.network import Exportable
from backbones.export.target import Target
from defocus_eval.files import sha256, write_text
from defocus_eval.progress import start_progress

TOLERANCE = 1e-4
# Older ones lack what keeps all sizes open, or translate no loops to ONNX.
OLDEST_TORCH = (2, 11)


def export(
    network: Exportable,
    target: Target,
    out: Path,
    tolerance: float = TOLERANCE,
    sizes: Sequence[tuple[int, int, int]] | None = None,
) -> dict[str, Any]:
    """Exports a network to ``out``, with ``out`` and ".json" for the manifest.

    All is written to a folder beside, checked there, and moved into place at the end.

    Args:
        network: What to export.
        target: The format.
        out: The file; its suffix is the format's.
        tolerance: The largest difference from PyTorch that is let through, as of `check.difference`.
        sizes: Batch, height and width of the images of the check; None for the network's own list.

    Returns:
        The manifest.

    Raises:
        ExportError: It cannot be exported, or differs; nothing was written.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise ExportError(f"exports need PyTorch 2.11 or newer, this is {torch.__version__}: update it")
    if out.suffix != target.suffixes[0]:
        raise ExportError(f"a file of {target.name} ends in {target.suffixes[0]}, got {out}: name it so")
    if not out.parent.is_dir():
        raise ExportError(f"there is no folder {out.parent}: make it, or give another --out")
    sizes = list(network.sizes if sizes is None else sizes)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        start_progress(len(sizes) + 1, f"{target.name}: tracing", unit="step") as bar,
    ):
        written = Path(folder) / out.name
        target.write(network, written)
        bar.update()
        bar.set_description(f"{target.name}: checking")
        checked = check(network, target.load(written), sizes, tolerance, bar.update)
        files = [written.with_suffix(suffix) for suffix in target.suffixes]
        manifest = describe(network, target, files, checked, tolerance)
        # The file that users name comes last: where it is, all of it is.
        for file in reversed(files):
            os.replace(file, out.parent / file.name)
    write_text(out.with_name(out.name + ".json"), json.dumps(manifest, indent=2) + "\n")
    return manifest


def describe(
    network: Exportable, target: Target, files: Sequence[Path], checked: Sequence[Checked], tolerance: float
) -> dict[str, Any]:
    """The manifest: all that somebody needs who has the files alone."""
    sides = [None, None] if network.size is None else list(network.size)
    return {
        "format": target.name,
        "network": network.about,
        "files": {file.name: {"sha256": sha256(file), "bytes": file.stat().st_size} for file in files},
        "inputs": {
            "images": {
                "dtype": "float32",
                "shape": [network.batch, network.channels, *sides],
                "dynamic": {str(axis): name for axis, name in network.open_axes.items()},
                "layout": "batch, channels, height, width",
            }
        },
        "outputs": list(network.outputs),
        "preprocessing": {
            "channels": "RGB",
            "range": [0, 255],
            "mean": list(network.mean),
            "std": list(network.std),
            "formula": "(pixel - mean) / std",
        },
        "classes": list(network.classes),
        "checked_against_pytorch": {
            "tolerance": tolerance,
            "difference": "largest absolute one, divided by the output's root mean square where that is above 1",
            "sizes": [_entry(one) for one in checked],
        },
        "details": dict(network.details),
        "versions": {"backbones": backbones.__version__, "python": platform.python_version(), **target.versions()},
    }


def _entry(one: Checked) -> dict[str, Any]:
    entry = {"batch_height_width": list(one.size), "difference": one.difference}
    if one.errors is not None:
        entry["from_float64"] = dict(zip(("pytorch", "export"), one.errors, strict=True))
    return entry
