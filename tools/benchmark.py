"""Times the operations, a block, or a whole backbone, and prints a table of ratios to paste.

All that is compared runs in one process, in turns, so that a machine that slows down slows all of it; a figure is the
median of the repeats. Memory is the peak above what was there before a run.

  scan        backends of the De-focus scan: forward, and forward with backward
  block       a Mamba block against its two matrix products alone, and bf16 autocast against fp32
  sweep       a block's forward as the sequence grows
  attention   De-focus attention against torch's scaled_dot_product_attention
  retention   De-focus retention as the sequence grows
  deformable  backends of deformable attention in the sizes of DINO's encoder on an image of 800 × 1,066
  backbone    a whole backbone, images per second
  adapter     training steps of a Mamba backbone through each adapter, and their parameters

Example:
    python tools/benchmark.py block --length 4705 --repeats 7
"""

import argparse
import contextlib
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

import backbones
from backbones import DefocusMamba
from backbones.adapters import tap_indices
from backbones.mixers import MambaBlock
from backbones.ops import decay_attention, defocus_scan, deformable_attention, retention
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN
from backbones.resolution import resolution_settings


@dataclass
class Row:
    """One thing that is timed; ``run`` is called once per repeat."""

    name: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(rows: list[Row], repeats: int, device: str) -> None:
    """Runs the rows in turns, once to warm up and ``repeats`` times for the clock."""
    for turn in range(repeats + 1):
        for row in rows:
            gc.collect()
            before = _reset_peak(device)
            start = time.perf_counter()
            row.run()
            _synchronise(device)
            seconds = time.perf_counter() - start
            row.peak_bytes = max(row.peak_bytes, _peak(device) - before)
            if turn:
                row.seconds.append(seconds)
            print(f"\r  {turn}/{repeats} {row.name:<40}", end="", flush=True)
    print("\r" + " " * 60 + "\r", end="")


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status(key: str) -> int:
    """A memory figure of this process in bytes, from Linux."""
    return int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _reset_peak(device: str) -> int:
    """Starts a new peak; returns what is in use."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def table(title: str, rows: list[Row], against: str) -> str:
    """Markdown: time, ratio to the row called ``against``, peak memory."""
    base = next(row.median for row in rows if row.name == against)
    lines = [f"{title}\n", f"| | ms | / {against} | {against} / | peak MiB |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        ratio = row.median / base
        memory = f"{row.peak_bytes / 2**20:.0f}"
        lines.append(f"| {row.name} | {row.median * 1e3:.1f} | {ratio:.2f} | {1 / ratio:.1f} | {memory} |")
    return "\n".join(lines)


def machine(device: str) -> str:
    """What ran this, in words."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return f"{name[1] if name else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def with_backward(function: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], object]:
    """``function`` and the gradients of its sum by ``leaves``."""

    def run():
        out = function()
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def scan_inputs(b, l, d, n, dtype, device):
    generator = torch.Generator().manual_seed(0)

    def normal(*size, dtype=torch.float32):
        return torch.randn(*size, generator=generator).to(device, dtype)

    A = -torch.arange(1, n + 1, device=device).float().repeat(d, 1)
    freq = torch.rand(n, generator=generator).to(device)
    return [
        normal(b, l, d, dtype=dtype),
        normal(b, l, d, dtype=dtype),
        A,
        normal(b, l, n, dtype=dtype),
        normal(b, l, n, dtype=dtype),
        normal(d),
        normal(b, l, d, dtype=dtype),
        freq,
        normal(d) - 4,
    ]


def scan(args) -> None:
    names = [n for n, backend in DEFOCUS_SCAN.backends.items() if backend.refusal(args.device) is None]
    for title, length, backward in (
        (f"forward, L = {args.length}", args.length, False),
        ("forward + backward, L = 1024", 1024, True),
    ):
        inputs = scan_inputs(args.batch, length, 1536, 16, args.dtype, args.device)
        if backward:
            inputs = [x.requires_grad_() for x in inputs]
        rows = []
        for name in names:

            def forward(name=name, inputs=inputs):
                return defocus_scan(*inputs, rope_scale=20.0, delta_scale=4.57, backend=name)

            rows.append(Row(name, with_backward(forward, inputs) if backward else torch.no_grad()(forward)))
        measure(rows, args.repeats, args.device)
        print(table(f"Scan, {title}, B = {args.batch}, inner 1536, state 16, {args.dtype}", rows, "reference") + "\n")


def block(args) -> None:
    arch = MambaBlock.archs["base"]
    model = MambaBlock(arch, rope_scale=20.0, delta_scale=4.57).to(args.device)
    x = torch.randn(args.batch, args.length, arch.embed_dims, device=args.device)
    inner = torch.randn(args.batch, args.length, arch.inner_dims, device=args.device)
    in_proj, out_proj = model.mixer.in_proj, model.mixer.out_proj

    def products_forward():
        in_proj(x), out_proj(inner)

    def autocast(function):
        def run():
            with torch.autocast(args.device, torch.bfloat16):
                return function()

        return run

    def products_backward():
        a, b = in_proj(x), out_proj(inner)
        leaves = [x, inner, in_proj.weight, out_proj.weight]
        return torch.autograd.grad((a, b), leaves, (torch.ones_like(a), torch.ones_like(b)))

    released = DEFOCUS_SCAN.backends["mamba_ssm"].refusal(args.device) is None

    def released_way(function):
        def run():
            with _environment("DEFOCUS_SCAN_BACKEND", "mamba_ssm"):
                return function()

        return run

    parameters = list(model.parameters())
    x.requires_grad_()
    inner.requires_grad_()
    step = with_backward(lambda: model(x), [x, *parameters])
    for title, floor, run in (
        ("forward", torch.no_grad()(products_forward), torch.no_grad()(lambda: model(x))),
        ("forward + backward", products_backward, step),
    ):
        rows = [
            Row("two products fp32", floor),
            Row("block fp32", run),
            Row("two products bf16", autocast(floor)),
            Row("block bf16 autocast", autocast(run)),
        ]
        if released:
            rows += [
                Row("released way fp32", released_way(run)),
                Row("released way bf16", autocast(released_way(run))),
            ]
        measure(rows, args.repeats, args.device)
        print(table(f"Mamba-B block, {title}, B = {args.batch}, L = {args.length}", rows, "two products fp32"))
        medians = {row.name: row.median for row in rows}
        print(f"\nblock bf16 / fp32: {medians['block bf16 autocast'] / medians['block fp32']:.2f}\n")


@contextlib.contextmanager
def _environment(name: str, value: str):
    import os

    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _growth(args, title: str, make: Callable[[int], Callable[[], object]]) -> None:
    lengths = args.lengths
    rows = [Row(f"L = {length}", torch.no_grad()(make(length))) for length in lengths]
    measure(rows, args.repeats, args.device)
    print(table(title, rows, rows[0].name))
    by_length = dict(zip(lengths, (row.median for row in rows), strict=True))
    if {4096, 16384} <= set(lengths):
        print(f"\n16384 / 4096 tokens: {by_length[16384] / by_length[4096]:.2f}")
    if args.plot:
        _plot(args.plot, title, by_length)


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


def sweep(args) -> None:
    arch = MambaBlock.archs["base"]
    model = MambaBlock(arch, rope_scale=20.0, delta_scale=4.57).to(args.device)

    def make(length):
        x = torch.randn(args.batch, length, arch.embed_dims, device=args.device)
        return lambda: model(x)

    _growth(args, f"Mamba-B block, forward, B = {args.batch}, fp32", make)


def heads(args, length, value_dims):
    shape = (args.batch, length, 12, 64)
    q, k = (torch.randn(shape, device=args.device, dtype=args.dtype) for _ in range(2))
    v = torch.randn(args.batch, length, 12, value_dims, device=args.device, dtype=args.dtype)
    bandpass = backbones.layers.bandpass.Bandpass(12, 64).to(args.device)
    return q, k, v, *(x.detach() for x in bandpass())


def attention(args) -> None:
    q, k, v, decay, freq = heads(args, args.length, 64)
    q_, k_, v_ = (x.transpose(1, 2) for x in (q, k, v))
    rows = [
        Row("sdpa causal", torch.no_grad()(lambda: F.scaled_dot_product_attention(q_, k_, v_, is_causal=True))),
        Row("de-focus causal", torch.no_grad()(lambda: decay_attention(q, k, v, decay, freq))),
    ]
    measure(rows, args.repeats, args.device)
    print(table(f"Attention, B = {args.batch}, L = {args.length}, 12 heads of 64, {args.dtype}", rows, "sdpa causal"))
    matrix = args.batch * 12 * args.length**2 * 4
    print(f"\npeak of de-focus / one L×L×heads fp32 matrix: 1/{matrix / max(rows[1].peak_bytes, 1):.1f}")


def retention_growth(args) -> None:
    def make(length):
        values = heads(args, length, 128)
        return lambda: retention(*values)

    _growth(args, f"Retention, forward, B = {args.batch}, 12 heads of 64 and 128, {args.dtype}", make)


def deformable(args) -> None:
    shapes = [(100, 134), (50, 67), (25, 34), (13, 17)]
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(args.batch, tokens, 8, 32, device=args.device, dtype=args.dtype)
    # A query looks around its own place, as after training, not all over the image.
    rows, columns = (torch.linspace(0, 1, n, device=args.device) for n in (100, tokens // 100 + 1))
    places = torch.cartesian_prod(rows, columns)[:tokens].flip(1)[None, :, None, None, None]
    locations = places + 0.05 * torch.randn(args.batch, tokens, 8, 4, 4, 2, device=args.device)
    weights = torch.rand(args.batch, tokens, 8, 4, 4, device=args.device)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    names = [n for n, b in DEFORMABLE_ATTENTION.backends.items() if n != "reference" and b.refusal(args.device) is None]
    for title, backward in (("forward", False), ("forward + backward", True)):
        rows = []
        for name in names:

            def forward(name=name):
                return deformable_attention(value, shapes, locations, weights, backend=name)

            rows.append(Row(name, with_backward(forward, leaves) if backward else torch.no_grad()(forward)))
        measure(rows, args.repeats, args.device)
        print(table(f"Deformable attention, {title}, B = {args.batch}, {args.dtype}", rows, "torch") + "\n")


def backbone(args) -> None:
    rows = []
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=args.device)
    for name in args.families:
        family = backbones.defocus.FAMILIES[name]
        model = family(args.arch, section_size=224).to(args.device).eval()
        rows.append(Row(f"{name} {args.arch}", torch.no_grad()(lambda model=model: model(images))))
    measure(rows, args.repeats, args.device)
    print(table(f"Backbone, forward, {args.batch} × {args.image_size}², fp32", rows, rows[0].name))
    for row in rows:
        print(f"\n{row.name}: {args.batch / row.median:.2f} images/s")


def adapter(args) -> None:
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=args.device)
    settings = resolution_settings(args.image_size, 224)
    rows, millions = [], {}
    for kind in (backbones.SimpleFPN, backbones.TapPyramid, backbones.InteractionAdapter):
        depth = DefocusMamba.block.archs[args.arch].depth
        net = DefocusMamba(args.arch, out_indices=tap_indices(depth), **settings)
        model = backbones.AdaptedBackbone(net, kind.fit(net, out_channels=256)).to(args.device)
        millions[kind.__name__] = sum(p.numel() for p in model.adapter.parameters()) / 1e6
        rows.append(Row(kind.__name__, lambda model=model: sum(m.mean() for m in model(images)).backward()))
    measure(rows, args.repeats, args.device)
    print(table(f"Mamba {args.arch}, training step, {args.batch} × {args.image_size}², fp32", rows, rows[0].name))
    for name, count in millions.items():
        print(f"\n{name}: {count:.2f} M parameters")


COMMANDS = {
    "scan": scan,
    "block": block,
    "sweep": sweep,
    "attention": attention,
    "retention": retention_growth,
    "deformable": deformable,
    "backbone": backbone,
    "adapter": adapter,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=4705, help="tokens (default: 4705, an image of 1,100 pixels)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], help="of sweeps")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--arch", default="base")
    parser.add_argument("--families", nargs="+", default=list(backbones.defocus.FAMILIES))
    parser.add_argument("--plot", type=Path, help="picture of a sweep")
    args = parser.parse_args()
    print(f"{machine(args.device)}\n")
    COMMANDS[args.what](args)


if __name__ == "__main__":
    main()
