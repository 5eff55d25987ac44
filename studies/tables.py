"""The study's results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from defocus_eval.markdown import table
from studies.measures import deep_layer, early_share
from studies.significance import Summary, compare, summarise
from studies.variants import Variant

# Results of a network, one a seed.
Results = Mapping[str, Sequence[dict]]


def results_table(results: Results, variants: Mapping[str, Variant]) -> str:
    """Accuracy and, of the deep layer, the numbers of over-focus; a row a network.

    Args:
        results: By key; networks without any are left out.
        variants: By key, in the order of the rows.
    """
    columns: dict[str, Callable[[dict], float]] = {
        "accuracy, %": lambda result: 100 * result["accuracy"],
        "tokens attended": deep_number("effective_tokens"),
        "top 1 %": lambda result: 100 * deep_number("top_share")(result),
        "distance, px": deep_number("mean_distance"),
        "by the class token": deep_number("class_effective_tokens"),
        "gradient, early third": lambda result: 100 * early_share(result["layers"]),
        "tokens it reaches": lambda result: result["layers"][0]["gradient_tokens"],
    }
    rows = []
    for key, variant in variants.items():
        if results.get(key):
            found = [summarise([column(result) for result in results[key]]) for column in columns.values()]
            each = " ".join(f"{value:.1f}" for value in found[0].values)
            rows.append([variant.title, *map(_with_spread, found[:1]), each, *map(_with_spread, found[1:])])
    header = list(columns)
    return table(["network", header[0], "each seed", *header[1:]], rows)


def comparison_table(
    results: Results, variants: Mapping[str, Variant], pairs: Sequence[tuple[str, str]], value: Callable[[dict], float]
) -> str:
    """Differences of pairs of networks, the first less the second, with Welch's test.

    Args:
        results: By key; pairs that lack results are left out.
        variants: By key.
        pairs: Keys.
        value: The figure of a result.
    """
    rows = []
    for first, second in pairs:
        if results.get(first) and results.get(second):
            found = compare([value(result) for result in results[first]], [value(result) for result in results[second]])
            interval = "–" if found.low is None else f"{found.low:+.1f} to {found.high:+.1f}"
            p = "–" if found.p is None else f"{found.p:.3f}"
            title = f"{variants[first].title} − {variants[second].title}"
            rows.append([title, f"{found.difference:+.1f}", interval, p])
    return table(["difference", "mean", "95 % interval", "p"], rows)


def deep_number(name: str) -> Callable[[dict], float]:
    """Reads a number of the deep layer from a result."""
    return lambda result: result["layers"][deep_layer(len(result["layers"]))][name]


def _with_spread(summary: Summary) -> str:
    if len(summary.values) == 1:
        return f"{summary.mean:.1f}"
    return f"{summary.mean:.1f} ± {summary.spread:.1f}"
