"""Shows the learned bandpass filters of a De-focus checkpoint, before training and after.

    OUT/passbands.png       |H(ω)| of each head or channel of some layers
    OUT/histograms.png      half-lives of the decay, frequencies of the phase
    OUT/by_layer.png        widths and centres of the passbands
    OUT/filters.md, filters.json    percentiles by layer
    OUT/filters.npz         decay and phase of every filter

Before training are the initial values, or another checkpoint's (--before FILE). For De-focus Mamba the decay is A Δ,
with the step Δ of the bias alone, softplus(bias) / delta_scale, as the typical one: the data move it. Example:

    defocus filters --checkpoint work_dirs/run/epoch_12.pth --config mmdet_configs/dino/NAME.py --out filters
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbones.analysis import LayerFilters, initial_filters, learned_filters, map_layers
from backbones.analysis.figures import DPI
from backbones.analysis.filter_drawing import draw_by_layer, draw_histograms, draw_passbands
from backbones.checkpoints import CheckpointError, read_backbone
from backbones.integrations.frameworks import FrameworkError
from backbones.integrations.networks import backbone_of_config
from defocus_eval.errors import InputError
from defocus_eval.files import replacing, write_text
from defocus_eval.markdown import table

PERCENTILES = (10, 50, 90)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status, 2 for refused input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"{options.out} is a file; give a folder")
        filters = read_filters(options)
        layers = map_layers(len(filters["after"]), options.layers)
        options.out.mkdir(parents=True, exist_ok=True)
        result = to_json(filters)
        _write(filters, layers, result, options.out)
    except (InputError, CheckpointError, FrameworkError, ValueError, OSError) as error:
        parser.error(str(error))
    print(to_markdown(result))
    print(f"wrote {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of any framework")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument("--before", metavar="FILE", help="an earlier checkpoint (default: the initial values)")
    parser.add_argument("--config", metavar="FILE", help="config of mmdet or mmseg that has the two scales")
    parser.add_argument("--rope-scale", type=float, metavar="X", help="of the backbone (default: the config's, or 1)")
    parser.add_argument("--delta-scale", type=float, metavar="X", help="of the backbone (default: the config's, or 1)")
    parser.add_argument(
        "--layers", type=int, nargs="+", metavar="I", help="layers to draw, from 0 on or from the end (default: four)"
    )
    parser.add_argument(
        "--container", metavar="KEY", help="key of the weights in the file (default: an average if any)"
    )
    parser.add_argument("--prefix", help="beginning of the backbone's names, for a file with several")
    return parser


def read_filters(options: argparse.Namespace) -> dict[str, Sequence[LayerFilters]]:
    """The filters "before", where they are known, and "after" training, block by block.

    Raises:
        InputError: A scale is not positive, or the earlier checkpoint is another network's.
        CheckpointError: A checkpoint cannot be read or holds no backbone.
        ValueError: The config has another backbone, or the weights no filters.
    """
    scales = {}
    if options.config:
        _, settings, _, _ = backbone_of_config(options.config)
        scales = {name: settings[name] for name in ("rope_scale", "delta_scale") if name in settings}
    for name in ("rope_scale", "delta_scale"):
        if getattr(options, name) is not None:
            scales[name] = getattr(options, name)
        if scales.get(name, 1) <= 0:
            raise InputError(f"--{name.replace('_', '-')} must be positive, got {scales[name]}")
    weights = read_backbone(options.checkpoint, options.container, options.prefix).backbone
    after = learned_filters(weights, **scales)
    before: list[LayerFilters] | None
    if options.before:
        earlier = read_backbone(options.before, options.container, options.prefix).backbone
        before = learned_filters(earlier, **scales)
        shapes = [[layer.decay.shape for layer in found] for found in (before, after)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{options.before} holds another network than {options.checkpoint}: give an earlier state")
    else:
        before = initial_filters(weights, **scales)
    return {"after": after} if before is None else {"before": before, "after": after}


def to_json(filters: Mapping[str, Sequence[LayerFilters]]) -> dict[str, Any]:
    """Percentiles by layer, and by how much training moved the filters."""
    result: dict[str, Any] = {"percentiles": PERCENTILES}
    for state, found in filters.items():
        result[state] = [
            {
                "layer": layer.name,
                "banks": layer.decay.shape[0],
                "filters": layer.decay.size,
                "half_life": _percentiles(layer.half_life),
                "width": _percentiles(layer.width),
                "centre": _percentiles(np.abs(layer.phase)),
            }
            for layer in found
        ]
    if "before" in filters:
        for record, old, new in zip(result["after"], filters["before"], filters["after"], strict=True):
            record["decay_ratio"] = _ratio(new.decay, old.decay)
            record["phase_ratio"] = _ratio(new.phase, old.phase)
    return result


def _percentiles(values: np.ndarray) -> list[float | None]:
    # The nearest rank: between two half-lives one of which is infinite there is no number.
    found = np.percentile(values, PERCENTILES, method="nearest")
    return [float(value) if np.isfinite(value) else None for value in found]


def _ratio(new: np.ndarray, old: np.ndarray) -> list[float | None]:
    """Percentiles of new over old, of those that were not 0."""
    there = old != 0
    return _percentiles(new[there] / old[there]) if there.any() else [None] * len(PERCENTILES)


def to_markdown(result: dict[str, Any]) -> str:
    """The percentiles as one table, those before training as far as they are known."""
    header = ["layer", "filters", "half-life, tokens", "width, rad / token", "centre, rad / token"]
    moved = "before" in result
    header += ["decay, of before", "phase, of before"] * moved
    rows = []
    for record in result["after"]:
        row = [
            record["layer"],
            f"{record['filters']:,}",
            *(_form(record[key]) for key in ("half_life", "width", "centre")),
        ]
        row += [_form(record["decay_ratio"]), _form(record["phase_ratio"])] if moved else []
        rows.append(row)
    if moved:
        first = result["before"][0]
        cells = [_form(first[key]) for key in ("half_life", "width", "centre")]
        rows.insert(0, [f"before, {first['layer']}", f"{first['filters']:,}", *cells, "", ""])
    return "10th, 50th and 90th percentile over the filters of a layer.\n\n" + table(header, rows) + "\n"


def _form(values: Sequence[float | None]) -> str:
    return " · ".join("–" if value is None else f"{value:.3g}" for value in values)


def _write(
    filters: dict[str, Sequence[LayerFilters]], layers: Sequence[int], result: dict[str, Any], out: Path
) -> None:
    figures = {
        "passbands.png": draw_passbands(filters, layers),
        "histograms.png": draw_histograms(filters),
        "by_layer.png": draw_by_layer(filters),
    }
    for name, figure in figures.items():
        with replacing(out / name) as partial:
            figure.savefig(partial, dpi=DPI, format="png")
    arrays: dict[str, Any] = {
        f"{state}/{layer.name}/{part}": getattr(layer, part)
        for state, found in filters.items()
        for layer in found
        for part in ("decay", "phase")
    }
    with replacing(out / "filters.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    texts = {"filters.json": json.dumps(result, indent=1, allow_nan=False) + "\n", "filters.md": to_markdown(result)}
    for name, text in texts.items():
        write_text(out / name, text)
