"""Looks into De-focus checkpoints and converts them.

--inspect             what a file holds: where its weights stand, its kind, sizes and heads
backbone (default)    a classifier, detector or segmentor to the backbone alone
--class-map FILE      a 21K classifier to one over the classes whose rows FILE lists, one number a line
--to detectron2       a detector of mmdet to Detectron2's names: backbone, simple pyramid, and DINO for detrex
  --adapted             for a detector whose pyramid is our AdaptedBackbone, not SimpleFeaturePyramid
--to mmdet            the same back; either way it says what it could not carry
--to timm             a classifier to the released names, which timm's models have
--to transformers     a classifier, or a backbone with its adapter, to a folder that transformers reads offline;
                      what weights do not tell comes from --config or --set

A folder that transformers saved is read as a file is, whatever model it holds.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backbones.checkpoints import (
    CheckpointError,
    backbone_from_checkpoint,
    check_finite,
    describe_backbone,
    find_average,
    find_backbones,
    read_checkpoint,
    select_head_classes,
    to_classifier,
    to_detectron2,
    to_mmdet,
    weights_of,
)
from defocus_eval.files import replacing

CONVERTERS: dict[str, Any] = {
    "detectron2": to_detectron2,
    "mmdet": to_mmdet,
    "timm": to_classifier,
    "transformers": None,
}
SUFFIXES = (".pth", ".pt", ".safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help=".pth or .safetensors file, a folder of transformers, or an http(s) address")
    parser.add_argument(
        "output", nargs="?", type=Path, help="file to write, .pth or .safetensors; a folder for transformers"
    )
    parser.add_argument("--inspect", action="store_true", help="say what the file holds, write nothing")
    parser.add_argument("--class-map", type=Path, help="rows of the head to keep, one number a line, in class order")
    parser.add_argument("--to", choices=CONVERTERS, help="the framework whose names to write")
    parser.add_argument("--adapted", action="store_true", help="with --to detectron2: the pyramid is AdaptedBackbone's")
    parser.add_argument("--config", help="with --to transformers: the config of mmdet or mmseg that the weights are of")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="with --to transformers: fields of its config"
    )
    parser.add_argument(
        "--labels", type=Path, help="with --to transformers: names of a classifier's classes, one a line"
    )
    parser.add_argument("--container", help="key of the weights in the file (default: a moving average if any)")
    parser.add_argument("--prefix", help="beginning of the backbone's names, for a file with several backbones")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(arguments)
    if args.to and args.class_map:
        parser.error("--to is for detectors, --class-map for classifiers: give one of them")
    if args.adapted and args.to != "detectron2":
        parser.error("--adapted goes with --to detectron2")
    if args.prefix is not None and (args.to not in (None, "transformers") or args.class_map):
        parser.error("--prefix is for the backbone alone: leave out --to and --class-map")
    if (args.config or args.set or args.labels) and args.to != "transformers":
        parser.error("--config, --set and --labels go with --to transformers")
    if not args.inspect:
        check_output(parser, args.output, args.overwrite, folder=args.to == "transformers")
    try:
        checkpoint = read_checkpoint(args.checkpoint)
    except CheckpointError as error:
        sys.exit(str(error))
    try:
        weights, container = weights_of(checkpoint, args.container)
        if args.inspect:
            print(describe(checkpoint, weights, container))
            return 0
        left = []
        if args.to == "transformers":
            print(f"{args.checkpoint}: weights {_source(checkpoint, container)}")
            print(f"{args.output}: {write_transformers(weights, args)}")
            return 0
        if args.to:
            out, left = CONVERTERS[args.to](weights, **({"adapted": True} if args.adapted else {}))
        elif args.class_map:
            out = select_head_classes(weights, read_class_map(args.class_map))
        else:
            out, left = backbone_from_checkpoint(weights, args.prefix)
        check_finite(out)
        # Under the key that the framework's own loaders look for.
        save(out, args.output, "model" if args.to == "detectron2" else "state_dict")
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"{args.checkpoint}: {error}")
    print(f"{args.checkpoint}: weights {_source(checkpoint, container)}")
    # What another framework has no place for is news; a classifier's heads are not.
    shown = left if args.to else left[:8]
    print(f"{args.output}: {len(out)} tensors" + (f"; left out {len(left)}: {', '.join(shown)}" if left else ""))
    return 0


def check_output(parser: argparse.ArgumentParser, output: Path | None, overwrite: bool, folder: bool) -> None:
    """Ends the program before anything is read if ``output`` cannot be what is written."""
    if output is None:
        parser.error("give an output file, or --inspect")
    if folder:
        if output.exists():
            sys.exit(f"{output} exists: choose another name, or remove it")
        return
    if output.is_dir():
        parser.error(f"{output} is a folder: name the file to write in it")
    if output.suffix not in SUFFIXES:
        parser.error(f"{output} must end in {', '.join(SUFFIXES)}, which says how it is written")
    if output.exists() and not overwrite:
        sys.exit(f"{output} exists: choose another name or add --overwrite")


def write_transformers(weights: dict, args: argparse.Namespace) -> str:
    """Writes the folder of transformers, and says what is in it."""
    # They take seconds to import, and are wanted here alone.
    from backbones.integrations.networks import MEAN, STD, read_settings
    from backbones.integrations.transformers import folders, processing

    settings, mean, std = folders.settings_of_config(args.config) if args.config else ({}, MEAN, STD)
    settings |= read_settings(args.set)
    labels = args.labels.read_text().splitlines() if args.labels else None
    model = folders.model_of_weights(weights, settings, labels, args.prefix)
    check_finite(model.state_dict())
    size = model.config.image_size if hasattr(model, "head") else None
    folders.write_folder(model, processing.image_processor(size, mean, std), args.output)
    adapter = f", adapter {model.config.adapter}" if model.config.adapter else ""
    return f"{type(model).__name__}, {len(model.state_dict())} tensors{adapter}"


def describe(checkpoint: dict, weights: dict, container: str | None) -> str:
    """A few lines on a checkpoint: kind, sizes, heads, and what else it holds."""
    values = sum(v.numel() for v in weights.values()) / 1e6
    lines = [f"weights: {len(weights)} tensors, {values:.2f} M values, {_source(checkpoint, container)}"]
    try:
        check_finite(weights)
    except CheckpointError as error:
        lines.append(f"warning: {error}")
    others = [key for key in checkpoint if key != container and not isinstance(checkpoint[key], torch.Tensor)]
    if others:
        lines.append(f"besides: {', '.join(map(str, others))}")
    found = find_backbones(weights)
    if not found:
        lines.append(f"no De-focus backbone; first names: {', '.join(list(weights)[:5])}")
    for prefix in found:
        backbone, left = backbone_from_checkpoint(weights, prefix)
        family, sizes = describe_backbone({name: tuple(value.shape) for name, value in backbone.items()})
        where = f" under {prefix!r}" if prefix else ""
        lines.append(f"{family or 'unknown backbone'}{where}: {', '.join(f'{k}={v}' for k, v in sizes.items())}")
        values = sum(v.numel() for v in backbone.values()) / 1e6
        lines.append(f"  {len(backbone)} tensors, {values:.2f} M values")
    if len(found) == 1:
        heads = [name for name in left if re.match(r"head\d*\.", name.removeprefix(found[0]))]
        lines += [f"head: {name} {tuple(weights[name].shape)}" for name in heads if name.endswith("weight")]
        rest = {name.removeprefix("module.").split(".")[0] for name in left if name not in heads}
        if rest:
            lines.append(f"other parts: {', '.join(sorted(rest))}")
    return "\n".join(lines)


def _source(checkpoint: dict, container: str | None) -> str:
    """Where the weights stood in the file, in words."""
    if container is None:
        return "the file itself"
    return f"under {container!r}" + (", a moving average" if container == find_average(checkpoint) else "")


def read_class_map(path: Path) -> list[int]:
    """Rows from a text file of one whole number a line.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    try:
        return [int(line) for line in path.read_text().split()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"class map {path}: {error}; it must hold one whole number a line") from error


def save(weights: dict, path: Path, container: str) -> None:
    """Writes beside the target and renames, so that an interruption leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            # A tensor that stands under two names, as detrex' heads do, is written twice: the format shares nothing.
            save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in weights.items()}, temporary)
        else:
            torch.save({container: weights}, temporary)
