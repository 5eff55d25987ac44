"""What each operation is tried on: inputs by size, small and awkward or as published, and how it is called.

All numbers of the sequences are numbers of bf16, so that one truth serves every dtype.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from backbones.layers.bandpass import initial_freq, initial_log_rate
from backbones.ops import causal_conv1d_silu, decay_attention, defocus_scan, deformable_attention, retention
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.decay_attention import DECAY_ATTENTION
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from backbones.ops.dispatch import Backend, Operation, serves_every_device
from backbones.ops.mamba_inner import MAMBA_INNER, mamba_inner
from backbones.ops.retention import RETENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN

Size = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """How an operation is tried.

    Attributes:
        operation: Its backends.
        inputs: Given a size and a generator, the tensors that have a gradient, by name, fp32 on the CPU.
        call: Given a size, the tensors and a backend's name, the output.
        sequences: Names of the tensors that a network hands over in 16 bits.
        small: Sizes that fill no block of any kernel.
        published: The size of the base models by device type; on a CPU shorter, so that a definition takes seconds.
        definition_bytes: Memory that the definition takes in float64, forward and backward, given a size.
    """

    operation: Operation
    inputs: Callable[[Size, Generator], dict[str, Tensor]]
    call: Callable[[Size, Mapping[str, Tensor], str], Tensor]
    sequences: tuple[str, ...]
    small: tuple[Size, ...]
    published: Mapping[str, Size]
    definition_bytes: Callable[[Size], int]

    def make(self, size: Size, device: str = "cpu") -> dict[str, Tensor]:
        """The inputs of a size, the same at each call."""
        inputs = self.inputs(size, torch.Generator().manual_seed(0))
        return {name: (x.bfloat16().float() if name in self.sequences else x).to(device) for name, x in inputs.items()}

    @property
    def definition(self) -> Backend:
        """The first backend that only those who name it get, though it serves every device: the formula itself."""
        return next(backend for backend in self.operation.backends.values() if is_definition(backend))

    @property
    def fallback(self) -> Backend:
        """What runs on every device when nothing else does, also in float64, without the memory of the definition."""
        return [backend for backend in self.operation.backends.values() if backend.automatic][-1]


def is_definition(backend: Backend) -> bool:
    """Whether a backend is a formula written down, not a way to run it."""
    return not backend.automatic and backend.refusal is serves_every_device


def describe(size: Size) -> str:
    """A size in words: ``b 1, l 4705``, ``maps 5×7 3×4``."""
    return ", ".join(f"{name} {_in_words(value)}" for name, value in size.items())


def _in_words(value: Any) -> str:
    return " ".join(f"{h}×{w}" for h, w in value) if isinstance(value, tuple) else str(value)


def scan_inputs(size: Size, generator: Generator) -> dict[str, Tensor]:
    """Of `defocus_scan`: decay rates and phases as they are at the start of a training, steps of about 0.02."""
    b, l, d, n = (size[name] for name in "bldn")

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return dict(
        u=normal(b, l, d),
        dt=normal(b, l, d),
        A=-torch.arange(1, n + 1).float().repeat(d, 1),
        B=normal(b, l, n),
        C=normal(b, l, n),
        D=normal(d),
        z=normal(b, l, d),
        freq=torch.rand(n, generator=generator),
        dt_bias=normal(d) - 4,
    )


def _call_scan(size, inputs, backend):
    return defocus_scan(
        **inputs, rope_scale=20.0, delta_scale=4.57, norm_group_dims=size["norm_group"], backend=backend
    )


def _conv_inputs(size, generator):
    b, l, d = (size[name] for name in "bld")
    shapes = dict(x=(b, l, d), weight=(d, 1, 4), bias=(d,))
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def _inner_inputs(size, generator):
    b, l, d, n, r = (size[name] for name in "bldnr")

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    return dict(
        xz=normal(b, l, 2 * d),
        conv_weight=normal(d, 1, 4, scale=0.5),
        conv_bias=normal(d),
        x_proj_weight=normal(r + 2 * n, d, scale=d**-0.5),
        dt_proj_weight=normal(d, r, scale=r**-0.5),
        dt_proj_bias=normal(d) - 4,
        A=-torch.arange(1, n + 1).float().repeat(d, 1),
        D=normal(d),
        freq=torch.rand(n, generator=generator),
    )


def _call_inner(size, inputs, backend):
    return mamba_inner(**inputs, rope_scale=20.0, delta_scale=4.57, norm_group_dims=size["norm_group"], backend=backend)


def head_inputs(size: Size, generator: Generator) -> dict[str, Tensor]:
    """Of attention and retention: decays and phases with the spread of their initial values, disturbed."""
    b, l, h, k, v = (size[name] for name in "blhkv")
    decay = -initial_log_rate(h).exp() * torch.rand(h, generator=generator).add(0.5)
    freq = initial_freq(h, k) * torch.rand(h, k // 2, generator=generator).add(0.5)
    q, k, v = (torch.randn(b, l, h, width, generator=generator) for width in (k, k, v))
    return dict(q=q, k=k, v=v, decay=decay, freq=freq)


def _call_attention(size, inputs, backend):
    return decay_attention(**inputs, causal=size["causal"], backend=backend)


def _call_retention(size, inputs, backend):
    return retention(**inputs, backend=backend)


def _all_pairs_bytes(size: Size) -> int:
    return size["b"] * size["h"] * size["l"] ** 2 * 8 * 8


def deformable_inputs(size: Size, generator: Generator) -> dict[str, Tensor]:
    """Of `deformable_attention`: a query looks around its own place, as after training, some beyond the edges.

    No point lies within a fiftieth of a pixel of where the gradient of its place jumps: fp32 and float64 would take
    different sides.
    """
    b, heads, width, queries, points, shapes = (
        size[name] for name in ("b", "heads", "width", "queries", "points", "maps")
    )
    maps, tokens = len(shapes), sum(h * w for h, w in shapes)
    places = _centres(shapes) if queries == tokens else torch.rand(queries, 2, generator=generator)
    locations = places[None, :, None, None, None] + 0.05 * torch.randn(
        b, queries, heads, maps, points, 2, generator=generator
    )
    sides = torch.tensor(shapes).flip(1)[:, None]
    pixels = locations * sides - 0.5
    pixels = pixels.floor() + 0.02 + 0.96 * (pixels - pixels.floor())
    weights = torch.rand(b, queries, heads, maps * points, generator=generator)
    return dict(
        value=torch.randn(b, tokens, heads, width, generator=generator),
        locations=(pixels + 0.5) / sides,
        weights=(weights / weights.sum(-1, keepdim=True)).unflatten(-1, (maps, points)),
    )


def _centres(shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """The centre (x, y) of each pixel of each map, `(tokens, 2)`, where the queries of an encoder are."""
    sides = [((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in shapes]
    return torch.cat([torch.cartesian_prod(rows, columns).flip(1) for rows, columns in sides])


def _call_deformable(size, inputs, backend):
    return deformable_attention(inputs["value"], size["maps"], inputs["locations"], inputs["weights"], backend=backend)


def _deformable_bytes(size: Size) -> int:
    samples = size["b"] * size["queries"] * size["heads"] * size["points"] * len(size["maps"])
    return samples * size["width"] * 8 * 4 * 4


def _encoder(shapes: tuple[tuple[int, int], ...]) -> Size:
    """DINO's encoder: every token of every map is a query."""
    return dict(b=1, heads=8, width=32, queries=sum(h * w for h, w in shapes), points=4, maps=shapes)


# An image of 800 × 1,066, and one of half its sides.
DINO_MAPS = ((100, 134), (50, 67), (25, 34), (13, 17))
_HALF_MAPS = ((50, 67), (25, 34), (13, 17), (7, 9))

CASES = {
    case.operation.name: case
    for case in (
        Case(
            DEFOCUS_SCAN,
            scan_inputs,
            _call_scan,
            ("u", "dt", "B", "C", "z"),
            (dict(b=2, l=70, d=72, n=6, norm_group=24), dict(b=1, l=33, d=64, n=16, norm_group=64)),
            dict(
                cpu=dict(b=1, l=512, d=1536, n=16, norm_group=64),
                cuda=dict(b=1, l=4705, d=1536, n=16, norm_group=64),
            ),
            lambda size: size["b"] * size["l"] * size["d"] * size["n"] * 8 * 6,
        ),
        Case(
            CAUSAL_CONV1D,
            _conv_inputs,
            lambda size, inputs, backend: causal_conv1d_silu(**inputs, backend=backend),
            ("x", "weight", "bias"),
            (dict(b=2, l=70, d=70), dict(b=1, l=3, d=33)),
            dict(cpu=dict(b=1, l=4705, d=1536), cuda=dict(b=1, l=4705, d=1536)),
            lambda size: size["b"] * size["l"] * size["d"] * 8 * 6,
        ),
        Case(
            MAMBA_INNER,
            _inner_inputs,
            _call_inner,
            ("xz",),
            (dict(b=2, l=70, d=72, n=6, r=5, norm_group=24),),
            dict(
                cpu=dict(b=1, l=512, d=1536, n=16, r=48, norm_group=64),
                cuda=dict(b=1, l=4705, d=1536, n=16, r=48, norm_group=64),
            ),
            lambda size: size["b"] * size["l"] * size["d"] * size["n"] * 8 * 6,
        ),
        Case(
            DECAY_ATTENTION,
            head_inputs,
            _call_attention,
            ("q", "k", "v"),
            tuple(dict(b=2, l=150, h=3, k=8, v=12, causal=causal) for causal in (True, False)),
            dict(
                cpu=dict(b=1, l=1024, h=12, k=64, v=64, causal=True),
                cuda=dict(b=1, l=4705, h=12, k=64, v=64, causal=True),
            ),
            _all_pairs_bytes,
        ),
        Case(
            RETENTION,
            head_inputs,
            _call_retention,
            ("q", "k", "v"),
            (dict(b=2, l=150, h=3, k=8, v=12),),
            dict(cpu=dict(b=1, l=1024, h=12, k=64, v=128), cuda=dict(b=1, l=4705, h=12, k=64, v=128)),
            _all_pairs_bytes,
        ),
        Case(
            DEFORMABLE_ATTENTION,
            deformable_inputs,
            _call_deformable,
            ("value",),
            (dict(b=2, heads=3, width=5, queries=11, points=4, maps=((5, 7), (3, 4), (1, 1))),),
            dict(cpu=_encoder(_HALF_MAPS), cuda=_encoder(DINO_MAPS)),
            _deformable_bytes,
        ),
    )
}
