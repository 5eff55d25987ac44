"""Looks into De-focus checkpoints and converts them.

--inspect             what a file holds: where its weights stand, its kind, sizes and heads
backbone (default)    a released classifier or detector to the backbone alone
--class-map FILE      a 21K classifier to one over the classes whose rows FILE lists, one number a line
--to detectron2       a detector of mmdet to Detectron2's names: backbone, simple pyramid, and DINO for detrex
--to mmdet            the same back; either way it says what it could not carry
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from backbones.checkpoints import (
    CheckpointError,
    backbone_from_checkpoint,
    read_checkpoint,
    select_head_classes,
    to_detectron2,
    to_mmdet,
    weights_of,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help=".pth or .safetensors file, or an http(s) address")
    parser.add_argument("output", nargs="?", type=Path, help="file to write, .pth or .safetensors")
    parser.add_argument("--inspect", action="store_true", help="say what the file holds, write nothing")
    parser.add_argument("--class-map", type=Path, help="rows of the head to keep, one number a line, in class order")
    parser.add_argument("--to", choices=("detectron2", "mmdet"), help="the framework whose names to write")
    parser.add_argument("--container", help="key of the weights in the file (default: a moving average if any)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args()
    if args.to and args.class_map:
        parser.error("--to is for detectors, --class-map for classifiers: give one of them")
    if not args.inspect and args.output is None:
        parser.error("give an output file, or --inspect")
    try:
        checkpoint = read_checkpoint(args.checkpoint)
        weights, container = weights_of(checkpoint, args.container)
        if args.inspect:
            print(describe(checkpoint, weights, container))
            return
        if args.output.exists() and not args.overwrite:
            sys.exit(f"{args.output} exists: choose another name or add --overwrite")
        if args.to:
            out, left = to_detectron2(weights) if args.to == "detectron2" else to_mmdet(weights)
        elif args.class_map:
            out = select_head_classes(weights, read_class_map(args.class_map))
            left = []
        else:
            out, left = backbone_from_checkpoint(weights)
    except (CheckpointError, ValueError) as error:
        sys.exit(str(error))
    # Under the key that the framework's own loaders look for.
    save(out, args.output, "model" if args.to == "detectron2" else "state_dict")
    # What another framework has no place for is news; a classifier's heads are not.
    shown = left if args.to else left[:8]
    print(f"{args.output}: {len(out)} tensors" + (f"; left out {len(left)}: {', '.join(shown)}" if left else ""))


def describe(checkpoint: dict, weights: dict, container: str | None) -> str:
    """A few lines on a checkpoint: kind, sizes, heads, and what else it holds."""
    backbone, left = backbone_from_checkpoint(weights)
    lines = [f"weights: {len(weights)} tensors, {sum(v.numel() for v in weights.values()) / 1e6:.2f} M values"]
    lines[0] += f", under {container!r}" if container else ", the file itself"
    others = [key for key in checkpoint if key != container and not isinstance(checkpoint[key], torch.Tensor)]
    if others:
        lines.append(f"besides: {', '.join(map(str, others))}")
    blocks = {name.split(".")[1] for name in backbone if name.startswith("blocks.")}
    if "cls_token" not in backbone or not blocks:
        return "\n".join([*lines, f"no De-focus backbone; first names: {', '.join(list(weights)[:5])}"])
    sizes = {"embed_dims": backbone["cls_token"].shape[-1], "depth": len(blocks)}
    a_log = backbone.get("blocks.0.mixer.A_log")
    if a_log is not None:
        sizes["inner_dims"], sizes["state_dims"] = a_log.shape
        sizes["dt_rank"] = backbone["blocks.0.mixer.dt_proj.weight"].shape[1]
        sizes["conv_kernel"] = backbone["blocks.0.mixer.conv1d.weight"].shape[-1]
    lines.append(f"backbone: {', '.join(f'{k}={v}' for k, v in sizes.items())}")
    values = sum(v.numel() for v in backbone.values()) / 1e6
    lines.append(f"  {len(backbone)} tensors, {values:.2f} M values")
    for name in left:
        if name.endswith("weight") and "head" in name:
            lines.append(f"head: {name} {tuple(weights[name].shape)}")
    rest = [name for name in left if "head" not in name]
    if rest:
        lines.append(f"other parts: {', '.join(sorted({name.split('.')[0] for name in rest}))}")
    return "\n".join(lines)


def read_class_map(path: Path) -> list[int]:
    """Rows from a text file of one whole number a line."""
    try:
        return [int(line) for line in path.read_text().split()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"class map {path}: {error}; it must hold one whole number a line") from error


def save(weights: dict, path: Path, container: str) -> None:
    """Writes beside the target and renames, so that an interruption leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(handle)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({k: v.contiguous() for k, v in weights.items()}, temporary)
        else:
            torch.save({container: weights}, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    main()
