"""What a study leaves for its reader: one page of tables, and two pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from defocus_eval.files import write_text
from studies.measures import deep_layer, maps
from studies.pictures import draw_accuracies, draw_maps, save
from studies.runs import Run
from studies.scattered_shapes import KINDS, draw
from studies.tables import Results, comparison_table, deep_number, results_table
from studies.training import Settings, to_input
from studies.variants import CLAIMS, SHOWN, VARIANTS

FIGURES: dict[str, Callable[[dict], float]] = {
    "Accuracy, in points": lambda result: 100 * result["accuracy"],
    "Tokens that the class token attends to": deep_number("class_effective_tokens"),
}


def write_report(results: Results, settings: Settings, folder: Path) -> str:
    """Writes ``results.md``, ``maps.jpg`` and ``accuracy.png`` into ``folder``.

    Args:
        results: By key of the network, one a seed; some may lack.
        settings: Of the study.
        folder: Of the results and weights.

    Returns:
        The page.
    """
    results = {key: found for key, found in results.items() if found}
    depth = len(next(iter(results.values()))[0]["layers"])
    parts = [
        f"{sum(map(len, results.values()))} runs, {settings.steps} steps of {settings.batch} images each; "
        f"{settings.test_images} test images, chance {100 / len(KINDS):.1f} %. Maps at the input of layer "
        f"{deep_layer(depth) + 1} of {depth}. ±: standard deviation over the seeds.",
        results_table(results, VARIANTS),
    ]
    for title, value in FIGURES.items():
        parts += [f"{title}:", comparison_table(results, VARIANTS, CLAIMS, value)]
    page = "\n\n".join(parts) + "\n"
    write_text(folder / "results.md", page)
    rows = {VARIANTS[key].title: [100 * result["accuracy"] for result in found] for key, found in results.items()}
    save(draw_accuracies(rows, 100 / len(KINDS)), folder / "accuracy.png")
    shown = [key for key in SHOWN if any(result["seed"] == 0 for result in results.get(key, ()))]
    if shown:
        save(_draw_maps(shown, settings, folder, depth), folder / "maps.jpg")
    return page


def _draw_maps(keys: Sequence[str], settings: Settings, folder: Path, depth: int):
    """Maps of the networks of seed 0 on the first test image."""
    test = draw(settings.test_images, settings.side, "test")
    layer = deep_layer(depth)
    found: Mapping[str, dict] = {}
    for key in keys:
        variant = VARIANTS[key]
        model = variant.build(settings.sizes[variant.family], num_classes=len(KINDS), patch_size=settings.patch_size)
        model.load_state_dict(torch.load(Run(key, 0).file(folder, ".pth"), weights_only=True)["model"])
        found[variant.title] = maps(model, to_input(test.images[0]), int(test.labels[0]), layer)
    return draw_maps(test.images[0].transpose(1, 2, 0), found, f"Layer {layer + 1} of {depth}")
