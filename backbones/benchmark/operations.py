"""Benchmarks of single operations: backends against each other, attention against torch's, growth with the sequence."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.benchmark.cases import CASES, DINO_MAPS, Case, Size
from backbones.benchmark.clock import Row, measure, ratio_line, table, with_backward
from backbones.ops import decay_attention, retention


def scan(options: Namespace) -> None:
    """Backends of the De-focus scan at the width of the base model."""
    for passes, length, backward, promised in (
        ("forward", options.length, False, "≥ 12"),
        ("forward + backward", min(options.length, 1024), True, "≥ 20"),
    ):
        title = f"{passes}, L = {length}"
        size = dict(b=options.batch, l=length, d=1536, n=16, norm_group=64)
        rows = _backends(CASES["defocus_scan"], size, options, backward, reference=True)
        measure(rows, options.repeats, options.device)
        print(table(f"Scan, {title}, B = {options.batch}, inner 1536, state 16, {options.dtype}", rows, "reference"))
        if options.device == "cpu" and any(row.name == "cpu" for row in rows):
            print(f"\n{ratio_line(f'scan, {title}', rows, 'reference', 'cpu', promised)}")
        print()


def deformable(options: Namespace) -> None:
    """Backends of deformable attention in the sizes of DINO's encoder."""
    tokens = sum(h * w for h, w in DINO_MAPS)
    size = dict(b=options.batch, heads=8, width=32, queries=tokens, points=4, maps=DINO_MAPS)
    for title, backward in (("forward", False), ("forward + backward", True)):
        rows = _backends(CASES["deformable_attention"], size, options, backward, reference=False)
        measure(rows, options.repeats, options.device)
        print(table(f"Deformable attention, {title}, B = {options.batch}, {options.dtype}", rows, "torch") + "\n")


def _backends(case: Case, size: Size, options: Namespace, backward: bool, reference: bool) -> list[Row]:
    """A row for each backend that runs on the device."""
    leaves = _leaves(case, size, options)
    rows = []
    for name, backend in case.operation.backends.items():
        if backend.refusal(options.device) is not None or (backend is case.definition and not reference):
            continue

        def forward(name=name):
            return case.call(size, leaves, name)

        rows.append(Row(name, with_backward(forward, list(leaves.values())) if backward else torch.no_grad()(forward)))
    return rows


def _leaves(case: Case, size: Size, options: Namespace) -> dict[str, Tensor]:
    return {
        name: (x.to(options.dtype) if name in case.sequences else x).requires_grad_()
        for name, x in case.make(size, options.device).items()
    }


def _heads(options: Namespace, operation: str, length: int, value_dims: int) -> dict[str, Any]:
    size = dict(b=options.batch, l=length, h=12, k=64, v=value_dims)
    return {name: x.detach() for name, x in _leaves(CASES[operation], size, options).items()}


def attention(options: Namespace) -> None:
    """De-focus attention against torch's causal attention, which knows no decay and no phase."""
    inputs = _heads(options, "decay_attention", options.length, 64)
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    rows = [
        Row("sdpa causal", torch.no_grad()(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))),
        Row("de-focus causal", torch.no_grad()(lambda: decay_attention(**inputs))),
    ]
    measure(rows, options.repeats, options.device)
    title = f"Attention, B = {options.batch}, L = {options.length}, 12 heads of 64, {options.dtype}"
    print(table(title, rows, "sdpa causal"))
    print(f"\n{ratio_line('attention, forward', rows, 'de-focus causal', 'sdpa causal', '≤ 3')}")
    matrix = options.batch * 12 * options.length**2 * 4
    share = matrix / max(rows[1].peak_bytes, 1)
    print(f"\npeak of de-focus / one L×L×heads fp32 matrix: 1/{share:.1f} (promised ≤ 1/8)")


def retention_growth(options: Namespace) -> None:
    """Retention as the sequence grows."""

    def make(length):
        inputs = _heads(options, "retention", length, 128)
        return lambda: retention(**inputs)

    growth(options, f"Retention, forward, B = {options.batch}, 12 heads of 64 and 128, {options.dtype}", make)


def growth(options: Namespace, title: str, make: Callable[[int], Callable[[], object]]) -> None:
    """Times what ``make`` gives for each of ``options.lengths``, and draws that where ``options.plot`` says."""
    lengths = options.lengths
    rows = [Row(f"L = {length}", torch.no_grad()(make(length))) for length in lengths]
    measure(rows, options.repeats, options.device)
    print(table(title, rows, rows[0].name))
    if {4096, 16384} <= set(lengths):
        print(f"\n{ratio_line('four times the tokens', rows, 'L = 16384', 'L = 4096', '≤ 4.4')}")
    if options.plot:
        _plot(options.plot, title, dict(zip(lengths, (row.median for row in rows), strict=True)))


def _plot(path: Path, title: str, by_length: dict[int, float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    lengths = list(by_length)
    axes.loglog(lengths, [by_length[l] * 1e3 for l in lengths], marker="o", label="measured")
    start = by_length[lengths[0]] * 1e3
    axes.loglog(lengths, [start * l / lengths[0] for l in lengths], linestyle="--", label="linear")
    axes.set(title=title, xlabel="tokens", ylabel="ms")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"\n{path}")
