"""Benchmarks of one Mamba block: against its own matrix products, and against the way of the released code."""

import contextlib
import functools
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from backbones.benchmark.clock import Row, measure, ratio_line, table, with_backward
from backbones.benchmark.operations import growth
from backbones.mixers import MambaBlock
from backbones.ops.dispatch import import_refusal
from backbones.ops.selective_scan import DEFOCUS_SCAN
from backbones.ops.selective_scan.mamba_ssm_backend import mamba_ssm_defocus_scan
from backbones.precision import choose_bf16


def make_block(options: Namespace) -> MambaBlock:
    """A block of the base model, with the scales of COCO."""
    return MambaBlock(MambaBlock.archs["base"], rope_scale=20.0, delta_scale=4.57).to(options.device)


def block(options: Namespace) -> None:
    """A block, forward and with backward, in fp32 and bf16, beside its floor and the released way."""
    model = make_block(options)
    x = torch.randn(options.batch, options.length, model.mixer.arch.embed_dims, device=options.device)
    inner = torch.randn(options.batch, options.length, model.mixer.arch.inner_dims, device=options.device)
    in_proj, out_proj = model.mixer.in_proj, model.mixer.out_proj
    released = released_refusal(options.device) is None
    _say_what_is_compared(options.device)
    bf16 = options.device != "cpu" or _cpu_knows_bf16()

    def products():
        return in_proj(x), out_proj(inner)

    def products_with_backward():
        outs = products()
        leaves = [x, inner, in_proj.weight, out_proj.weight]
        return torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])

    x.requires_grad_()
    inner.requires_grad_()
    step = with_backward(lambda: model(x), [x, *model.parameters()])
    for title, floor, run, promised in (
        ("forward", torch.no_grad()(products), torch.no_grad()(lambda: model(x)), "≤ 1.4"),
        ("forward + backward", products_with_backward, step, "≤ 1.6"),
    ):
        rows = [Row("two products fp32", floor), Row("block fp32", run)]
        if bf16:
            rows += [
                Row("two products bf16", in_bf16(floor, options.device)),
                Row("block bf16 autocast", in_bf16(run, options.device)),
            ]
        if released:
            rows += [
                Row("released way fp32", released_way(run, torch.float32)),
                Row("released way bf16", in_bf16(released_way(run, torch.bfloat16), options.device)),
            ]
        measure(rows, options.repeats, options.device)
        print(table(f"Mamba-B block, {title}, B = {options.batch}, L = {options.length}", rows, "two products fp32"))
        print()
        for line in promises(title, rows, options.device, promised):
            print(line)
        print()


def promises(title: str, rows: list[Row], device: str, over_products: str) -> Iterator[str]:
    """The lines that docs/performance.md has figures for, as far as their rows were measured.

    Args:
        title: Which passes were measured.
        rows: Measured rows, named as in `block`.
        device: "cpu" or "cuda".
        over_products: What a CPU's block is to take at most, over its two products.
    """
    measured = {row.name for row in rows}
    if device == "cpu":
        yield ratio_line(title, rows, "block fp32", "two products fp32", over_products)
        if "block bf16 autocast" in measured:
            yield ratio_line(title, rows, "block bf16 autocast", "block fp32", "≤ 0.55")
    if "released way fp32" in measured:
        yield ratio_line(title, rows, "released way fp32", "block bf16 autocast", "≥ 4")
        yield ratio_line(title, rows, "released way bf16", "block bf16 autocast", "≥ 1.5")
        yield ratio_line(
            f"{title}, peak memory", rows, "block bf16 autocast", "released way fp32", "≤ 0.5", memory=True
        )


def released_refusal(device: str) -> str | None:
    """Why the released way cannot be timed, or None."""
    return DEFOCUS_SCAN.backends["mamba_ssm"].refusal(device)


def _say_what_is_compared(device: str) -> None:
    if device != "cuda":
        return
    if reason := released_refusal(device):
        print(f"The released way is left out: {reason}\n")
    elif reason := import_refusal("causal_conv1d", "pip install causal-conv1d"):
        print(f"The released way runs its convolution in PyTorch, which is slower than as released: {reason}\n")


def _cpu_knows_bf16() -> bool:
    """Whether bf16 is worth its time here; says why not, for products emulate it ten times as slowly."""
    faster, reason = choose_bf16()
    if not faster:
        print(f"bf16 is left out. {reason}\n")
    return faster


def in_bf16(function: Callable[[], object], device: str) -> Callable[[], object]:
    """``function`` under autocast."""

    def run():
        with torch.autocast(device, torch.bfloat16):
            return function()

    return run


def released_way(function: Callable[[], object], handed: torch.dtype) -> Callable[[], object]:
    """``function`` on `released_packages`."""

    def run():
        with released_packages(handed):
            return function()

    return run


@contextlib.contextmanager
def released_packages(handed: torch.dtype) -> Iterator[None]:
    """Lets blocks run on the packages that the released code runs on, whose scan is given its sequences in a dtype.

    Under autocast the released code hands them over in 16 bits; our backend of that name takes fp32 for its precision.
    It lasts no longer than a pass that is timed, so it is cheap.
    """
    backend = DEFOCUS_SCAN.backends["mamba_ssm"]
    run = functools.partial(mamba_ssm_defocus_scan, handed=handed)
    DEFOCUS_SCAN.backends["mamba_ssm"] = replace(backend, run=run)
    try:
        with environment(DEFOCUS_SCAN.environment, "mamba_ssm"):
            yield
    finally:
        DEFOCUS_SCAN.backends["mamba_ssm"] = backend


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def sweep(options: Namespace) -> None:
    """A block's forward as the sequence grows."""
    model = make_block(options)

    def make(length):
        x = torch.randn(options.batch, length, model.mixer.arch.embed_dims, device=options.device)
        return lambda: model(x)

    growth(options, f"Mamba-B block, forward, B = {options.batch}, fp32", make)
