"""Every backend that can run here against the naive definition in float64: output and all nine gradients."""

import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.ops import defocus_scan
from backbones.ops.exported import without_scan
from backbones.ops.selective_scan import DEFOCUS_SCAN
from backbones.ops.selective_scan.levels import scan_in_levels
from tests.ops.heads import running
from tests.testing import TOLERANCE, assert_close

NAMES = ("u", "dt", "A", "B", "C", "D", "z", "freq", "dt_bias")
RUNNING = running(DEFOCUS_SCAN)
# Operators with a gradient of their own; what is exported is plain PyTorch, and its loop over 65,536 tokens slow.
REGISTERED = [p for p in RUNNING if p.values[1] not in ("mamba_ssm", "export")]

# (b, l, d, n, norm group): lengths, inner sizes and groups that are no multiples of anything; states that are no
# multiple of 4; more channels than any kernel takes at once.
SHAPES = [
    (1, 1, 64, 16, 64),
    (3, 2, 40, 2, 8),
    (1, 63, 96, 32, 32),
    (2, 70, 320, 6, 64),
    (1, 65, 48, 22, 24),
    (3, 500, 72, 16, 24),
    (1, 1000, 128, 8, 64),
    (1, 4705, 8, 16, 8),
]


@functools.cache
def truth(shape, dtype=torch.float32, delta="usual"):
    """Inputs rounded to ``dtype``, output and gradients of the naive definition on them in float64."""
    b, l, d, n, group = shape
    g = torch.Generator().manual_seed(hash(shape) % 2**31)

    def normal(*size):
        return torch.randn(*size, generator=g)

    dt_bias = normal(d) - 2
    dt = normal(b, l, d)
    if delta == "extreme":
        # softplus(log(expm1(x))) = x: step sizes from 1e-6 to 30.
        wanted = torch.logspace(-6, 1.477, d).expand(b, l, d)
        dt, dt_bias = torch.where(wanted > 15, wanted, torch.log(torch.expm1(wanted))), torch.zeros(d)
    inputs = [
        normal(b, l, d),
        dt,
        -torch.arange(1, n + 1).float().expand(d, n) * torch.rand(d, 1, generator=g).add(0.5),
        normal(b, l, n),
        normal(b, l, n),
        normal(d),
        normal(b, l, d),
        torch.rand(n, generator=g),
        dt_bias,
    ]
    sequences = ("u", "dt", "B", "C", "z")
    inputs = [x.to(dtype) if name in sequences else x for name, x in zip(NAMES, inputs)]
    leaves = [x.double().requires_grad_() for x in inputs]
    weight = normal(b, l, d)
    out = run(leaves, group, "reference")
    grads = torch.autograd.grad((out * weight.double()).sum(), leaves)
    return inputs, weight, group, out.detach(), grads


def run(inputs, group, backend):
    # About r² and r for r = 1.5, so that both scales count.
    return defocus_scan(*inputs, rope_scale=2.25, delta_scale=1.5, norm_group_dims=group, backend=backend)


def check(case, device, backend, tolerance=None):
    inputs, weight, group, expected, expected_grads = case
    leaves = [x.to(device).requires_grad_() for x in inputs]
    out = run(leaves, group, backend)
    assert out.dtype == inputs[0].dtype
    assert_close(out, expected, "output", tolerance)
    grads = torch.autograd.grad((out * weight.to(device)).sum(), leaves)
    for name, actual, grad, leaf in zip(NAMES, grads, expected_grads, leaves):
        assert actual.dtype == leaf.dtype
        # What sums values rounded to 16 bits is judged as those values are. The floor is for one token, where the
        # norm takes the scale of B and C out and leaves a gradient of rounding errors.
        limit = tolerance or TOLERANCE[inputs[0].dtype]
        assert_close(actual, grad, f"gradient of {name}", limit, floor=0.2)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-L{}-D{}-N{}-G{}".format(*s))
@pytest.mark.parametrize("device, backend", RUNNING)
def test_matches_definition(device, backend, shape):
    check(truth(shape), device, backend, limit(backend, shape[1], device))


def limit(backend, length, device):
    """The largest error in fp32: on the CPU two to ten times what is made; of GPUs no such figures are at hand."""
    if device == "cuda":
        return 1e-3 if length > 1000 else 2e-4
    if length == 1:
        # The norm takes the scale of B and C out; their gradients are differences of almost equal numbers.
        return 1e-4
    # In PyTorch's own terms angles are fp32, too, and the wronger the later the token.
    return TOLERANCE[torch.float32] + (0 if backend == "cpu" else 2.5e-7 * length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device, backend", RUNNING)
def test_16_bit(device, backend, dtype):
    check(truth((2, 130, 64, 16, 32), dtype), device, backend)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_step_sizes_from_1e_6_to_30(device, backend):
    check(truth((1, 200, 64, 16, 32), delta="extreme"), device, backend, limit(backend, 200, device))


# One token, a part of a chunk, a part of a group of chunks, several groups, and steps small and large.
@pytest.mark.parametrize(
    ("shape", "delta"),
    [
        ((1, 1, 64, 16, 64), "usual"),
        ((2, 70, 320, 6, 64), "usual"),
        ((1, 4705, 8, 16, 8), "usual"),
        ((1, 200, 64, 16, 32), "extreme"),
    ],
)
def test_what_is_compiled_matches_definition_without_a_loop(shape, delta):
    inputs, _, group, expected, _ = truth(shape, delta=delta)
    with torch.no_grad(), without_scan():
        out = run(inputs, group, "export")
    assert_close(out, expected, "output", limit("export", shape[1], "cpu"))


def test_large_steps_do_not_blur_the_small_ones_behind_them():
    # Of five blocks, three have steps so small that each counts in all behind it.
    length, d, n = 1280, 3, 2
    delta = torch.where(torch.arange(length)[:, None] < 512, 30.0, 1e-3).expand(1, length, d)
    x, B, C = torch.randn(1, length, d), torch.randn(1, length, n), torch.randn(1, length, n)
    A = -torch.tensor([[1.0], [16.0]]).expand(n, d)
    state, expected = torch.zeros(n, d, dtype=torch.float64), []
    for t in range(length):
        state = torch.exp(delta[0, t].double() * A) * state + B[0, t, :, None].double() * x[0, t]
        expected.append((C[0, t, :, None] * state).sum(0))
    assert_close(scan_in_levels(delta, x, A, B, C)[0], torch.stack(expected), "output", 2e-6)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_views_are_taken_as_they_are(device, backend):
    check_views(truth((2, 130, 64, 16, 32)), device, backend)


def check_views(case, device, backend):
    inputs, weight, group, expected, grads = case
    u, dt, A, B, C, _, z, _, _ = inputs
    d, n = A.shape
    views = dict(
        # Halves of one projection, slices of another, transposed layouts.
        u=torch.cat((u, z), -1)[..., :d],
        z=torch.cat((u, z), -1)[..., d:],
        B=torch.cat((dt[..., :3], B, C), -1)[..., 3 : 3 + n],
        C=torch.cat((dt[..., :3], B, C), -1)[..., 3 + n :],
        dt=dt.transpose(1, 2).contiguous().transpose(1, 2),
        A=A.t().contiguous().t(),
    )
    changed = [views.get(name, x) for name, x in zip(NAMES, inputs)]
    assert not any(views[name].is_contiguous() for name in views)
    leaves = [x.to(device).requires_grad_() for x in changed]
    out = run(leaves, group, backend)
    assert_close(out, expected, "output", limit(backend, u.shape[1], device))
    weight = weight.transpose(1, 2).contiguous().transpose(1, 2).to(device)
    for name, actual, grad in zip(NAMES, torch.autograd.grad(out, leaves, weight), grads):
        assert_close(actual, grad, f"gradient of {name}", limit(backend, u.shape[1], device))


@pytest.mark.parametrize("device, backend", RUNNING)
def test_the_gradient_of_a_sum_is_one_number_expanded(device, backend):
    check_expanded_gradient((2, 33, 32, 8, 16), device, backend)


def check_expanded_gradient(shape, device, backend):
    inputs, _, group, _, _ = truth(shape)
    leaves = [x.to(device).requires_grad_() for x in inputs]
    out = run(leaves, group, backend)
    expected = torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)
    for name, actual, grad in zip(NAMES, torch.autograd.grad(out.sum(), leaves), expected):
        assert torch.equal(actual, grad), name


@pytest.mark.parametrize("device, backend", [p for p in RUNNING if p.values[1] in ("torch", "cpu")])
def test_gradcheck(device, backend):
    inputs, _, _, _, _ = truth((2, 5, 8, 4, 4))
    leaves = [x.double().to(device).requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: run(x, 4, backend), leaves)


@pytest.mark.parametrize("device, backend", [p for p in RUNNING if p.values[1] != "export"])
def test_65536_tokens_in_bf16_stay_finite(device, backend):
    l, d, n = 65536, 16, 16
    inputs, *_ = truth((1, 500, d, n, 16), torch.bfloat16)
    leaves = []
    for x in inputs:
        if x.ndim == 3:
            x = x.repeat(1, l // 500 + 1, 1)[:, :l]
        leaves.append(x.to(device).requires_grad_())
    out = run(leaves, 16, backend)
    assert out.isfinite().all()
    for name, grad in zip(NAMES, torch.autograd.grad(out.float().square().sum(), leaves)):
        assert grad.isfinite().all(), name


@pytest.mark.parametrize("device, backend", REGISTERED)
def test_registered_with_torch_library(device, backend):
    check_registration((2, 33, 32, 8, 16), device, backend)


def check_registration(shape, device, backend):
    inputs, _, group, _, _ = truth(shape)
    args = [x.to(device).requires_grad_() for x in inputs]
    operator = getattr(torch.ops.defocus, f"scan_{backend}").default
    torch.library.opcheck(operator, (*args, 2.25, 1.5, group))


@pytest.mark.parametrize("device, backend", RUNNING)
def test_a_nan_stays_in_its_sample(device, backend):
    check_that_a_nan_stays((3, 2, 40, 8, 8), device, backend)


def check_that_a_nan_stays(shape, device, backend):
    inputs, _, group, expected, _ = truth(shape)
    changed = [x.clone() for x in inputs]
    changed[0][1, 0, 0] = float("nan")
    out = run([x.to(device) for x in changed], group, backend).cpu()
    assert out[1].isnan().any()
    assert_close(out[[0, 2]], expected[[0, 2]], "other samples", 5e-5)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_two_runs_give_the_same_bits(device, backend):
    check_repeats((3, 500, 72, 16, 24), device, backend)


def check_repeats(shape, device, backend):
    inputs, weight, group, _, _ = truth(shape)

    def once():
        leaves = [x.to(device, copy=True).requires_grad_() for x in inputs]
        out = run(leaves, group, backend)
        return out, *torch.autograd.grad((out * weight.to(device)).sum(), leaves)

    for first, second in zip(once(), once()):
        assert torch.equal(first, second)


# Those with an operator of their own.
@pytest.mark.parametrize("device, backend", REGISTERED)
def test_second_derivatives_are_refused(device, backend):
    check_second_derivative((1, 3, 8, 4, 4), device, backend)


def check_second_derivative(shape, device, backend):
    inputs, _, group, _, _ = truth(shape)
    leaves = [x.to(device).requires_grad_() for x in inputs]
    grads = torch.autograd.grad(run(leaves, group, backend).sum(), leaves, create_graph=True)
    message = f"backend='{backend}' of defocus_scan has no second derivative: choose backend=\"reference\""
    with pytest.raises(RuntimeError, match=message):
        grads[0].sum().backward()


class Allocations(TorchDispatchMode):
    """Counts the bytes of zeros that are asked for."""

    zeros = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "zeros" in function.name():
            self.zeros += out.numel() * out.element_size()
        return out


@pytest.mark.parametrize("device, backend", REGISTERED)
def test_no_gradient_of_zeros_is_made_for_the_kept_states(device, backend):
    inputs, _, group, _, _ = truth((2, 130, 64, 16, 32))
    leaves = [x.to(device).requires_grad_() for x in inputs]
    out = run(leaves, group, backend)
    states = out.numel() // 130 * 3 * 16 * 4
    with Allocations() as allocations:
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert allocations.zeros < states


def test_saved_memory_does_not_grow_with_the_states():
    def saved(n):
        inputs, _, group, _, _ = truth((1, 1000, 64, n, 64))
        total = 0

        def count(x):
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            run([x.requires_grad_() for x in inputs], group, "torch")
        return total

    # Twice the states: B, C and the kept boundary states double, u, dt and z, which are 64 wide, do not.
    assert saved(32) < 1.5 * saved(16)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(norm_group_dims=7), "norm_group_dims=7 does not divide the 40 channels"),
        (dict(B=torch.zeros(3, 2, 6)), r"B must be \(3, 2, 8\)"),
        (
            dict(z=torch.zeros(3, 2, 40, device="meta")),
            "u is on cpu, dt on cpu, z on meta, .*: move them to one device",
        ),
        (dict(u=torch.zeros(3, 40)), r"u must be \(b, l, d\)"),
        (dict(backend="cuda"), "'cuda' is no backend of defocus_scan; there are: .*torch"),
    ],
)
def test_bad_input(change, message):
    inputs, *_ = truth((3, 2, 40, 8, 8))
    arguments = dict(zip(NAMES, inputs), norm_group_dims=8) | change
    with pytest.raises(ValueError, match=message):
        defocus_scan(**arguments)


@pytest.mark.parametrize("exponent", [-0.04, -0.3, -0.45, -0.55, -0.9])
@pytest.mark.parametrize("device, backend", RUNNING)
def test_decay_is_right_after_many_steps(device, backend, exponent):
    """A factor that is a little wrong is wrong as many times as it is applied: here that of 2^exponent a token.

    Channel 1 keeps its impulse, so that the norm over both channels cancels in their ratio.
    """
    l = 16
    u = torch.zeros(1, l, 2)
    u[:, 0] = 1
    dt = torch.full((1, l, 2), math.log(math.expm1(1.0)))
    A = torch.tensor([[exponent * math.log(2)] * 2, [0.0] * 2])
    constants = torch.ones(1, l, 2), torch.ones(1, l, 2), torch.zeros(2), torch.ones(1, l, 2), torch.zeros(2)
    inputs = [x.to(device) for x in (u, dt, A, *constants, torch.zeros(2))]
    y = defocus_scan(*inputs, norm_group_dims=2, backend=backend)[0].double().cpu()
    truth = torch.exp(A[0, 0].double() * torch.arange(l))
    assert ((y[:, 0] / y[:, 1] - truth) / truth).abs().max() < 5e-6
