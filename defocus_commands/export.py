"""Exports a network to a file that runs without this package and without Python's: ONNX, PyTorch's own, OpenVINO.

    onnx        NAME.onnx, for ONNX Runtime and whatever else reads ONNX
    torch       NAME.pt2, a program of `torch.export`
    aot         NAME.pt2, compiled for this machine by AOTInductor, for C++
    openvino    NAME.xml and NAME.bin

Batch, height and width stay open, so that images of any size go in. What was exported is compared with PyTorch on
images of several sizes, one patch and 1,024 pixels among them, and is written where it differs by no more than 1e-4.
NAME.onnx.json, the manifest, says how images are prepared, what comes out, what was checked, and the file's hash.

Examples:
    defocus export defocus_mamba_base --checkpoint defocus_mamba_base_cls.pth --to onnx --out classifier.onnx
    defocus export DefocusMamba --set arch=small section_size=224 --adapter SimpleFPN --to onnx --out fpn.onnx
    defocus export mmdet_configs/dino/NAME.py --checkpoint epoch_12.pth --to onnx --out features.onnx
    defocus export mmseg_configs/upernet/NAME.py --checkpoint iter_160000.pth --part whole --to onnx \\
        --out segmentor.onnx

docs/export.md says what can be exported where, and how such a file is run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from backbones.checkpoints import CheckpointError
from backbones.export import TOLERANCE, ExportError, export
from backbones.integrations.exportable import FORMATS, PARTS, find_network, find_target
from backbones.integrations.frameworks import ADAPTERS, FrameworkError
from backbones.integrations.networks import read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        network = find_network(
            options.network,
            options.checkpoint,
            read_settings(options.set),
            options.adapter,
            options.part,
            tuple(options.size) if options.size else None,
            options.batch,
        )
        sizes = [tuple(size) for size in options.check] if options.check else None
        manifest = export(network, find_target(options.to), options.out, options.tolerance, sizes)
    except (ExportError, CheckpointError, FrameworkError, ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    for one in manifest["checked_against_pytorch"]["sizes"]:
        batch, height, width = one["batch_height_width"]
        line = f"{batch} × {height} × {width}: differs from PyTorch by {one['difference']:.1e}"
        if errors := one.get("from_float64"):
            line += f"; from float64 {errors['export']:.1e}, PyTorch itself {errors['pytorch']:.1e}"
        print(line)
    print(f"wrote {options.out} and {options.out}.json in {time.perf_counter() - start:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a family, as DefocusMamba, a name of timm, a config, or a folder")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--checkpoint", metavar="FILE", help="of any framework; without one weights are random")
    parser.add_argument(
        "--set",
        nargs="+",
        metavar="KEY=VALUE",
        help="arguments of the network; of a config, as model.backbone.arch=small",
    )
    parser.add_argument(
        "--adapter",
        choices=[kind for kind in ADAPTERS if kind != "AdaptedBackbone"],
        help="put this on a family's backbone, with random weights",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        default=PARTS[0],
        help="of a config: backbone and neck, or with the head (default: the first)",
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix the size of images (default: any)")
    parser.add_argument("--batch", type=int, metavar="N", help="fix the number of images (default: any)")
    parser.add_argument(
        "--check", type=int, nargs=3, action="append", metavar=("BATCH", "H", "W"),
        help="compare with PyTorch on images of this size; can be repeated (default: eight sizes up to 1,024 pixels)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="X",
        help=f"largest difference from PyTorch that is let through (default: {TOLERANCE:.0e})",
    )  # fmt: skip
    return parser
