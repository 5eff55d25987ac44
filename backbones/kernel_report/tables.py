"""A report as Markdown."""

import re
from collections.abc import Sequence
from typing import Any

from backbones.kernel_report.estimate import ASSUMPTIONS
from backbones.kernel_report.report import BATCHES, LENGTHS
from defocus_eval.markdown import plain_table

_PLACE = re.compile(r"(<!-- kernel_report -->\n).*?(<!-- /kernel_report -->)", re.DOTALL)


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """All tables of ``reports``, each of one architecture, and the assumptions behind them."""
    parts = []
    for found in reports:
        parts.append(f"Kernels on {_place(found)}, B = 2, L = 4,705, base:\n\n{_kernels(found['kernels'])}")
        makers = {"extremes": _extremes, "programs": _programs, "block": _block}
        parts += [make(found) for key, make in makers.items() if key in found]
        if any(row["name"] == "ours, bf16" for row in found.get("block", [])):
            parts.append(_ratios(found))
    left_out = reports[0]["left_out"]
    if left_out:
        parts.append(f"Without Triton kernels, so not here: {', '.join(left_out)}.")
    parts.append("Assumptions:\n\n" + "\n".join(f"- {line}" for line in ASSUMPTIONS))
    return "\n\n".join(parts)


def _kernels(kernels):
    head = (
        "kernel", "dtype", "registers", "spills B", "stack B", "shared B", "warps/SM", "SASS", "loops: rounds × SASS",
        "SASS/ct", "exp/ct", "B/ct", "µs ≥", "µs ≈",
    )  # fmt: skip
    rows = [
        (
            row["kernel"],
            row["dtype"],
            row["registers"],
            row["spill_bytes"],
            row["stack_bytes"],
            row["shared_bytes"],
            row["resident_warps"] or "0: does not fit",
            row["instructions"],
            _loops(row),
            f"{row['thread_instructions_an_element']:.0f}",
            f"{row['exponentials_an_element']:.1f}",
            f"{row['bytes_an_element']:.1f}",
            f"{1e6 * row['seconds_at_least']:.0f}",
            f"{1e6 * row['seconds_about']:.0f}",
        )
        for row in kernels
    ]
    return plain_table(head, rows)


def _extremes(found):
    spilling = [row for row in found["extremes"] if row["spill_bytes"]]
    said = [f"{name} is refused: {reason}." for name, reason in found["refused"].items()]
    names = ", ".join(sorted({row["operation"] for row in found["extremes"]}))
    if spilling:
        rows = [(row["operation"], row["kernel"], row["dtype"], row["spill_bytes"]) for row in spilling]
        said.append(f"Spills of {names}:\n\n{plain_table(('operation', 'kernel', 'dtype', 'spills B'), rows)}")
    elif names:
        said.append(f"Nothing spills in {names}.")
    return f"Beyond the published sizes on {_place(found)}: " + "\n\n".join(said)


def _loops(row):
    loops = [f"{x['rounds']:.0f} × {x['instructions']:.0f}" for x in row["loops"] if x["rounds"] > 1]
    return " + ".join(loops) + (" (rounds of some unknown)" if row["guessed_loops"] else "") or "–"


def _programs(found):
    sizes = [(b, l) for b in BATCHES for l in LENGTHS]
    head = ("kernel", *(f"{b} × {l:,}" for b, l in sizes))
    multiprocessors = found["multiprocessors"]
    rows = [
        (
            row["kernel"],
            *(
                f"{row['programs'][f'{b}x{l}'] / multiprocessors:.1f}"
                for b, l in sizes
                if f"{b}x{l}" in row["programs"]
            ),
        )
        for row in found["programs"]
    ]
    title = f"Programs a multiprocessor on {_place(found)} ({multiprocessors} of them), by B × L"
    return f"{title}:\n\n{plain_table(head, rows)}"


def _block(found):
    rows = [
        (
            row["name"],
            f"{row['launches_forward']} + {row['launches_backward']}",
            f"{row['moved_bytes'] / 1e9:.2f}",
            f"{row['kept_bytes'] / 2**20:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{1e3 * row['seconds_products']:.2f}",
            f"{1e3 * row['seconds_at_least']:.2f}",
            f"{1e3 * row['seconds_about']:.2f}",
        )
        for row in found["block"]
    ]
    head = ("block", "launches", "moved GB", "kept MiB", "peak MiB", "products ms", "ms ≥", "ms ≈")
    return f"Mamba-B block, forward + backward, on {_place(found)}, B = 2, L = 4,705:\n\n{plain_table(head, rows)}"


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What our block in bf16 promises against the released way: name, ratio, and the aim."""
    rows = {row["name"]: row for row in found["block"]}
    ours = rows["ours, bf16"]
    fp32, bf16 = rows["the released way, fp32"], rows["the released way, bf16"]
    return [
        ("time of the released way in fp32 / ours", fp32["seconds_about"] / ours["seconds_about"], "≥ 4.5"),
        ("the same by the ceilings alone", fp32["seconds_at_least"] / ours["seconds_at_least"], ""),
        ("time of the released way in bf16 / ours", bf16["seconds_about"] / ours["seconds_about"], "≥ 2.5"),
        ("the same by the ceilings alone", bf16["seconds_at_least"] / ours["seconds_at_least"], ""),
        ("peak memory, ours / the released way in fp32", ours["peak_bytes"] / fp32["peak_bytes"], "≤ 0.5"),
        ("kept after forward, ours / the released way, bf16", ours["kept_bytes"] / bf16["kept_bytes"], "≤ 0.4"),
        ("launches, forward + backward", ours["launches_forward"] + ours["launches_backward"], "≤ 60"),
    ]


def _ratios(found):
    rows = [(name, f"{value:.2f}" if value < 50 else f"{value:.0f}", aim) for name, value, aim in ratios(found)]
    return f"Against the aims, ours in bf16 on {_place(found)}:\n\n{plain_table(('measure', 'found', 'aim'), rows)}"


def _place(found):
    return f"{found['architecture']} ({found['card']})"


def replace_tables(page: str, text: str) -> str:
    """``page`` with ``text`` between `<!-- kernel_report -->` and `<!-- /kernel_report -->`.

    Raises:
        ValueError: The page has no such place.
    """
    if not _PLACE.search(page):
        raise ValueError("the page has no <!-- kernel_report --> … <!-- /kernel_report -->: add both lines")
    return _PLACE.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)
