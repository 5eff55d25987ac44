"""The formula of each operation against arithmetic by hand, on every backend, and in torch's own counter."""

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.flops import FlopCounter, torch_formulas
from backbones.ops import causal_conv1d_silu, decay_attention, defocus_scan, deformable_attention, flops, retention
from backbones.ops.dispatch import Operation
from backbones.ops.mamba_inner import mamba_inner
from tests.testing import skip_reason

OPERATIONS = {
    value.name: value
    for name, module in list(sys.modules.items())
    if name.startswith("backbones.ops.")
    for value in vars(module).values()
    if isinstance(value, Operation)
}
B, L, D, N = 2, 7, 6, 4
H, K, V = 3, 8, 10


def scan(backend):
    u, dt, z = (torch.randn(B, L, D) for _ in range(3))
    Bs, Cs = torch.randn(B, L, N), torch.randn(B, L, N)
    A, D_, freq, bias = -torch.rand(D, N), torch.randn(D), torch.rand(N), torch.randn(D)
    return defocus_scan(u, dt, A, Bs, Cs, D_, z, freq, bias, norm_group_dims=3, backend=backend)


def conv(backend):
    return causal_conv1d_silu(torch.randn(B, L, D), torch.randn(D, 1, 4), torch.randn(D), backend=backend)


def inner(backend):
    rank = 5
    weights = [torch.randn(shape) for shape in ((D, 1, 4), (D,), (rank + 2 * N, D), (D, rank), (D,))]
    constants = -torch.rand(D, N), torch.randn(D), torch.rand(N)
    return mamba_inner(torch.randn(B, L, 2 * D), *weights, *constants, norm_group_dims=3, backend=backend)


def heads():
    q, k, v = torch.randn(B, L, H, K), torch.randn(B, L, H, K), torch.randn(B, L, H, V)
    return q, k, v, -torch.rand(H), torch.rand(H, K // 2)


def deformable(backend):
    shapes = [(4, 5), (2, 3)]
    locations, weights = torch.rand(B, L, H, 2, 4, 2), torch.rand(B, L, H, 2, 4)
    return deformable_attention(torch.randn(B, 26, H, V), shapes, locations, weights, backend=backend)


CALLS = {
    # 2·7 = 14 tokens of 6 channels and 4 states: 9 a state, 2 for skip and gate.
    "defocus_scan": (scan, 9 * 14 * 6 * 4 + 2 * 14 * 6),
    # 4 taps.
    "causal_conv1d_silu": (conv, 2 * 14 * 6 * 4),
    # Both, and products of 6 channels with 5 + 4 + 4 rows, and of rank 5 with 6.
    "mamba_inner": (inner, 14 * 6 * (9 * 4 + 2 + 2 * 4) + 2 * 14 * 6 * 13 + 2 * 14 * 5 * 6),
    # 1 + 2 + ... + 7 = 28 pairs of tokens, 2 sequences, 3 heads.
    "decay_attention": (lambda backend: decay_attention(*heads(), backend=backend), 2 * 2 * 3 * 28 * (8 + 10)),
    # A state of 8 × 10 a head: decayed (1), updated (2), read (2).
    "retention": (lambda backend: retention(*heads(), backend=backend), 14 * 3 * 80 * (1 + 2 + 2)),
    # 7 queries, 3 heads, 2 maps, 4 points, 10 channels: 4 multiply-adds between neighbours, 1 into the sum.
    "deformable_attention": (deformable, 2 * 2 * 7 * 3 * 2 * 4 * 10 * (4 + 1)),
}
PAIRS = [(name, backend) for name in CALLS for backend in OPERATIONS[name].backends]


def test_every_operation_has_a_formula():
    assert set(flops.FORMULAS) == set(OPERATIONS) == set(CALLS)


@pytest.mark.parametrize("name, backend", PAIRS)
def test_each_operation_counts_as_by_hand_whatever_backend_runs(name, backend):
    reason = skip_reason(OPERATIONS[name].backends[backend], "cpu")
    if reason is not None:
        pytest.skip(reason)
    call, expected = CALLS[name]
    with FlopCounter() as counter:
        call(backend)
    assert counter.counts.by_operator == {name: expected}
    assert counter.counts.backends == {name: backend}


def test_attention_to_all_tokens_counts_every_pair():
    with FlopCounter() as counter:
        decay_attention(*heads(), causal=False, backend="reference")
    assert counter.counts.flops == 2 * 2 * 3 * (7 * 7) * (8 + 10)


@pytest.mark.parametrize("name, backend", [pair for pair in PAIRS if pair[1] == "cpu"] + [("decay_attention", "torch")])
def test_torchs_own_counter_knows_our_operators(name, backend):
    reason = skip_reason(OPERATIONS[name].backends[backend], "cpu")
    if reason is not None:
        pytest.skip(reason)
    call, expected = CALLS[name]
    with FlopCounterMode(display=False) as counter:
        call(backend)
    assert counter.get_total_flops() == expected


def test_no_operator_of_ours_is_without_formula_in_torchs_table():
    absent = [
        n for n in torch_formulas.operators() if getattr(torch.ops.defocus, n) not in torch_formulas.flop_registry
    ]
    assert absent == [], "give their stem a formula in backbones/flops/torch_formulas.py"


@pytest.mark.parametrize("causal", [False, True])
def test_torchs_attention_is_counted_on_a_cpu(causal):
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    with FlopCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # As torch has it, all pairs even of causal attention.
    assert counter.counts.flops == 2 * (2 * 3) * 5 * 7 * (8 + 8)
