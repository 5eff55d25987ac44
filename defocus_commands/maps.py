"""Shows where a network looks: the maps of the De-focus paper, pixels, features, and their numbers by layer.

    OUT/receptive_field.png    what the class token looks at, by layer
    OUT/attention.png          what the tokens at the query cells look at
    OUT/gradient.png           where the gradient of the training loss arrives
    OUT/features.png           principal components of the tokens
    OUT/erf.png                the pixels that the query cells hang on
    OUT/scan_order.png         the order of reading, on the image
    OUT/in_scan_order.png      the maps in that order
    OUT/numbers.png, maps.md, maps.json    entropy, effective tokens, share of the top 1 %, distances, gradient
    OUT/maps.npz               the maps as they are; maps-2.npz those of the second network

A checkpoint of a classifier, detector, segmentor or backbone says what its De-focus backbone is but for the arguments
that leave no trace in it: give its config of mmdet or mmseg, or the arguments. Examples:

    defocus maps --checkpoint epoch_12.pth --config mmdet_configs/dino/NAME.py --image image.jpg --out maps
    defocus maps --checkpoint defocus_mamba_base_det_12ep.pth --section-size 224 --rope-scale 20 \\
        --delta-scale 4.57 --image image.jpg --size 1024 1024 --out maps

With --against, --against-model or --against-config a second network stands beside, which may be a ViT, Swin or ResNet
of timm. docs/maps.md says what each picture and number means.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backbones.analysis import NetworkMaps, cut, measure, measuring
from backbones.analysis.drawing import pictures
from backbones.analysis.figures import DPI, Named
from backbones.analysis.maps import layer_runs, map_layers
from backbones.checkpoints import CheckpointError
from backbones.integrations.frameworks import FrameworkError
from backbones.integrations.networks import LoadedNetwork, load_network, read_settings
from defocus_eval.drawing import read_image
from defocus_eval.errors import InputError
from defocus_eval.files import replacing, write_text
from defocus_eval.markdown import percent, table
from defocus_eval.progress import start_progress

# Column of the table: recipe, number, heading, whether it is a share.
COLUMNS = (
    ("receptive_field", "effective_tokens", "class token: effective tokens", False),
    ("receptive_field", "entropy", "entropy", False),
    ("receptive_field", "top_share", "top 1 %", True),
    ("receptive_field", "distance_tokens", "distance, tokens", False),
    ("receptive_field", "on_padding", "on padding", True),
    ("attention", "effective_tokens", "attention: effective tokens", False),
    ("attention", "entropy", "entropy", False),
    ("attention", "effective_share", "of the visible", True),
    ("attention", "top_share", "top 1 %", True),
    ("attention", "distance_tokens", "distance, tokens", False),
    ("attention", "distance_patches", "patches", False),
    ("gradient", "effective_tokens", "gradient: effective tokens", False),
    ("gradient", "top_share", "top 1 %", True),
    ("gradient", "of_last_layer", "norm, of the last layer's", False),
)
SUMMARY = {
    "receptive_field_effective_tokens": "class token: effective tokens, mean of the layers",
    "receptive_field_effective_share": "the same as a share of the image, %",
    "receptive_field_top_share": "class token: share of the top 1 %, %",
    "attention_effective_share": "attention: effective share of the visible, %",
    "attention_top_share": "attention: share of the top 1 %, %",
    "gradient_effective_tokens": "gradient: effective tokens",
    "early_gradient_share": "gradient norm in the first third of the layers, %",
    "erf_effective_share": "pixels of the last layer drawn: effective share of the image, %",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"{options.out} is a file; give a folder")
        pixels = read_image(options.image, "give an image that Pillow reads")
        loaded = [_load(options)]
        if options.against or options.against_model or options.against_config:
            loaded.append(_load(options, against=True))
        elif options.against_set:
            raise InputError("--against-set is for a second network: name it by --against, -model or -config")
        names = _names([network.about for network in loaded], options.names)
        networks = [_look(network, name, pixels, options) for network, name in zip(loaded, names, strict=True)]
        options.out.mkdir(parents=True, exist_ok=True)
        result = to_json(networks, options)
        _write(networks, result, options.out)
    except (InputError, CheckpointError, FrameworkError, ValueError, OSError) as error:
        parser.error(str(error))
    print(to_markdown(result))
    print(f"wrote {options.out} in {time.perf_counter() - start:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the image")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    add_network_arguments(parser)
    parser.add_argument("--against", metavar="FILE", help="checkpoint of a second network")
    parser.add_argument("--against-model", metavar="NAME", help="as --model, of the second")
    parser.add_argument("--against-config", metavar="FILE", help="as --config, of the second")
    parser.add_argument("--against-set", nargs="+", metavar="KEY=VALUE", help="as --set, of the second")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="what to call the networks (default: by their files)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="resize the image to this (default: as it is)"
    )
    parser.add_argument(
        "--layers", type=int, nargs="+", metavar="I", help="layers to draw, from 0 on or from the end (default: four)"
    )
    parser.add_argument(
        "--queries", type=_queries, metavar="N|all",
        help="attention is taken of the query cells and an even grid of N further tokens, or of all (default: fewer "
        "the longer the sequence)",
    )  # fmt: skip
    parser.add_argument(
        "--cells", type=_cell, nargs="+", metavar="ROW,COLUMN", default=[(0.25, 0.25), (0.5, 0.5), (0.75, 0.75)],
        help="query cells to draw, as fractions of height and width (default: 0.25,0.25 0.5,0.5 0.75,0.75)",
    )  # fmt: skip
    parser.add_argument(
        "--erf-layers", type=int, nargs="+", metavar="I", default=[-1],
        help="layers whose field on the pixels is drawn (default: the last)",
    )  # fmt: skip
    parser.add_argument("--target", type=int, metavar="CLASS", help="class of the loss (default: the predicted one)")
    parser.add_argument("--mean", type=float, nargs="+", help="of each channel, 0 to 255 (default: the config's)")
    parser.add_argument("--std", type=float, nargs="+", help="the same")
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    return parser


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which De-focus network is meant."""
    parser.add_argument("--checkpoint", metavar="FILE", help="of any framework; without one weights are random")
    parser.add_argument("--model", metavar="NAME", help="a family, as DefocusMamba, or a name of timm")
    parser.add_argument("--config", metavar="FILE", help="config of mmdet or mmseg that has the backbone")
    parser.add_argument("--section-size", type=int, metavar="PIXELS", help="argument of the backbone")
    parser.add_argument("--rope-scale", type=float, metavar="X", help="argument of the backbone")
    parser.add_argument("--delta-scale", type=float, metavar="X", help="argument of the backbone")
    parser.add_argument(
        "--set", nargs="+", metavar="KEY=VALUE", help="further arguments of the network, as causal=False"
    )
    parser.add_argument(
        "--container", metavar="KEY", help="key of the weights in the file (default: an average if any)"
    )
    parser.add_argument("--prefix", help="beginning of the backbone's names, for a file with several")


def network_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the network from those of `add_network_arguments`."""
    named = {name: getattr(options, name) for name in ("section_size", "rope_scale", "delta_scale")}
    return {name: value for name, value in named.items() if value is not None} | read_settings(options.set)


def _queries(word: str) -> int:
    if word == "all":
        return sys.maxsize
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a number, or all; got {word!r}")
    return int(word)


def _cell(word: str) -> tuple[float, float]:
    try:
        row, column = map(float, word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"two fractions, as 0.5,0.25; got {word!r}") from None
    return row, column


def _load(options: argparse.Namespace, against: bool = False) -> LoadedNetwork:
    """The first network, or with ``against`` the one that stands beside."""
    size = tuple(options.size) if options.size else None
    if size and min(size) < 1:
        raise InputError(f"--size takes a height and a width in pixels, got {size[0]} {size[1]}")
    own = (options.checkpoint, options.model, options.config, network_settings(options))
    if against:
        checkpoint, model, config = options.against, options.against_model, options.against_config
        settings = read_settings(options.against_set)
        if model is None and config is None:
            # Another checkpoint of the same network, as of before and after.
            model, config, settings = *own[1:3], own[3] | settings
        own = (checkpoint, model, config, settings)
    try:
        return load_network(*own, size, *(() if against else (options.container, options.prefix)))
    except TypeError as error:
        raise InputError(f"the network does not take these arguments: {error}") from error


def _names(sources: Sequence[str], given: Sequence[str] | None) -> Sequence[str]:
    """What the networks are called: as asked, else by their files, with the folder where two have the same name."""
    if given is not None:
        if len(given) != len(sources):
            raise InputError(f"--names takes a name for each network: there are {len(sources)}, got {len(given)}")
        return given
    short = [Path(source).name for source in sources]
    return short if len(set(short)) == len(short) else [str(Path(*Path(source).parts[-2:])) for source in sources]


def _look(loaded: LoadedNetwork, name: str, pixels: np.ndarray, options: argparse.Namespace) -> Named:
    picture = pixels
    size = loaded.size or options.size
    if size and tuple(size) != pixels.shape[:2]:
        picture = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(given or own) for given, own in ((options.mean, loaded.mean), (options.std, loaded.std)))
    if len(mean) != 3 or len(std) != 3 or (std <= 0).any():
        raise InputError("--mean and --std take three numbers each, for red, green and blue, those of --std above 0")
    image = ((torch.tensor(picture, dtype=torch.float32) - mean) / std).permute(2, 0, 1)[None]
    try:
        image, model = image.to(options.device), loaded.model.to(options.device)
    # What a device that is not there raises hangs on how torch was built.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {options.device} cannot be used here: {reason}") from error
    with measuring(model):
        network = cut(model, image)
        map_layers(len(network.layers), options.layers)
        total = layer_runs(len(network.layers), options.erf_layers)
        with start_progress(total, network.family, unit="layer") as bar:
            maps = measure(
                network, image, layers=options.layers, cells=options.cells, queries=options.queries,
                target=options.target, erf_layers=options.erf_layers, tick=bar.update,
            )  # fmt: skip
    return Named(name, picture, maps)


def to_json(networks: Sequence[Named], options: argparse.Namespace) -> dict[str, Any]:
    """All numbers, and what they are of."""
    found = []
    for item in networks:
        layout = item.maps.layers[0].layer.before
        found.append(
            {
                "name": item.name,
                "family": item.maps.family,
                "image": [*item.picture.shape[:2]],
                "tokens": len(layout.cells),
                "tokens_on_image": len(layout.image_tokens),
                "loss": item.maps.loss,
                "drawn": [item.maps.layers[index].layer.name for index in item.maps.drawn],
                "summary": item.maps.summary,
                "layers": [{"layer": layer.layer.name, **layer.numbers} for layer in item.maps.layers],
            }
        )
    return {"image": options.image.name, "cells": options.cells, "networks": found}


def to_markdown(result: dict[str, Any]) -> str:
    """A table by layer for each network, and one of all of them."""
    parts = []
    for network in result["networks"]:
        height, width = network["image"]
        parts.append(f"## {network['name']}")
        queries = network["layers"][-1]["attention"]["queries"]
        parts.append(
            f"{network['family']}, {result['image']} as {height} × {width} pixels, {network['tokens']:,} tokens, "
            f"{network['tokens_on_image']:,} of them on the image. Attention: mean of {queries:,} queries. Gradient: "
            f"{network['loss']}. Shares in %."
        )
        if network["layers"][0]["receptive_field"] is None:
            parts.append("It has no class token, so no receptive field of one.")
        elif network["loss"].startswith("no head"):
            parts.append("Dense prediction drops the class token: nothing has trained what it looks at.")
        parts.append(_layers(network["layers"]))
    header = ["mean over the layers, or of the network", *(network["name"] for network in result["networks"])]
    rows = []
    for key, heading in SUMMARY.items():
        values = [network["summary"].get(key) for network in result["networks"]]
        if any(value is not None for value in values):
            rows.append([heading, *(_form(value, "share" in key) for value in values)])
    return "\n\n".join([*parts, "## In short", table(header, rows)]) + "\n"


def _layers(layers: Sequence[dict]) -> str:
    """The table by layer, without columns that have no number."""

    def number(layer: dict, recipe: str, name: str) -> float | None:
        return (layer[recipe] or {}).get(name)

    shown = [column for column in COLUMNS if any(number(layer, *column[:2]) is not None for layer in layers)]
    rows = [
        [layer["layer"], *(_form(number(layer, recipe, name), share) for recipe, name, _, share in shown)]
        for layer in layers
    ]
    return table(["layer", *(column[2] for column in shown)], rows)


def _form(value: float | None, share: bool) -> str:
    if value is None:
        return "–"
    return percent(value) if share else f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _write(networks: Sequence[Named], result: dict[str, Any], out: Path) -> None:
    for name, draw in pictures(networks).items():
        figure = draw()
        if figure is not None:
            with replacing(out / name) as partial:
                figure.savefig(partial, dpi=DPI, format="png")
    for number, item in enumerate(networks, 1):
        with replacing(out / ("maps.npz" if number == 1 else f"maps-{number}.npz")) as partial:
            save_arrays(partial, item.maps)
    texts = {"maps.json": json.dumps(result, indent=1, allow_nan=False) + "\n", "maps.md": to_markdown(result)}
    for name, text in texts.items():
        write_text(out / name, text)


def save_arrays(path: Path, maps: NetworkMaps) -> None:
    """All maps into one file of numpy."""
    with path.open("wb") as file:
        arrays: dict[str, Any] = maps.arrays()
        np.savez_compressed(file, **arrays)
