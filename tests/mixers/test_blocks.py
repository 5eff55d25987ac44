"""Each family's block against its equations in float64, and what a block does with stochastic depth and 16 bits."""

from functools import partial

import pytest
import torch

from backbones.mixers import MambaBlock, RetNetBlock, ViTBlock
from backbones.mixers.mamba import MambaArch
from backbones.mixers.retnet import RetNetArch
from backbones.mixers.vit import ViTArch
from tests.mixers import reference
from tests.testing import assert_close

# Block, sizes, and the same written out. No size equals another, so that none is taken for another.
FAMILIES = {
    "mamba": (
        MambaBlock,
        MambaArch(embed_dims=12, inner_dims=20, depth=2, dt_rank=3, state_dims=4, conv_kernel=3, norm_group_dims=10),
        partial(reference.mamba_block, group=10),
    ),
    "vit": (ViTBlock, ViTArch(embed_dims=24, depth=2, num_heads=3), partial(reference.vit_block, heads=3, causal=True)),
    "vit both ways": (
        partial(ViTBlock, causal=False),
        ViTArch(embed_dims=24, depth=2, num_heads=3, mlp_ratio=1.5),
        partial(reference.vit_block, heads=3, causal=False),
    ),
    "retnet": (
        RetNetBlock,
        RetNetArch(embed_dims=24, depth=2, num_heads=3, value_dims=30, ffn_dims=14),
        partial(reference.retnet_block, heads=3),
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def randomise(block):
    """Gives every parameter, those that start at 0 and 1 too, a value of its own."""
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith(("log_rate", "A_log")):
                # Decays of a tenth to a few tokens: neither forgotten at once nor kept for ever.
                parameter.uniform_(-2.5, 0.5)
            else:
                parameter.normal_(std=0.5)
                parameter.add_(parameter.ndim == 1)
    return block


# Each scale alone, so that one taken for the other, or left out, changes the result; then both as on COCO.
@pytest.mark.parametrize("rope_scale, delta_scale", [(1, 1), (3, 1), (1, 3), (20.0, 4.57)])
def test_equals_the_equations(family, rope_scale, delta_scale):
    kind, arch, equations = family
    block = randomise(kind(arch, 0.0, rope_scale, delta_scale)).double()
    x = torch.randn(2, 11, arch.embed_dims, dtype=torch.float64, requires_grad=True)
    weights = dict(block.named_parameters())
    out = block(x)
    expected = equations(weights, x, rope_scale=rope_scale, delta_scale=delta_scale)
    assert_close(out, expected, "output", 1e-12)
    leaves = [x, *weights.values()]
    loss_weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * loss_weight).sum(), leaves)
    expected_grads = torch.autograd.grad((expected * loss_weight).sum(), leaves)
    for name, actual, truth in zip(("input", *weights), grads, expected_grads, strict=True):
        assert truth.abs().max() > 1e-6, f"{name} does not count here"
        assert_close(actual, truth, f"gradient of {name}", 1e-12)


@pytest.mark.parametrize("kind", [ViTBlock, RetNetBlock])
def test_initial_weights(kind):
    linears = [module for module in kind(kind.archs["base"]).modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == (4 if kind is ViTBlock else 8)
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        # The ViT alone has biases.
        assert linear.bias is None or not linear.bias.any()


@pytest.mark.parametrize("scales", [(), (3.0,), (3.0, 5.0)], ids=str)
def test_scales_that_are_not_given_are_one(family, scales):
    kind, arch, _ = family
    some, all_given = randomise(kind(arch, 0.0, *scales)), kind(arch, 0.0, *(*scales, 1.0, 1.0)[:2])
    all_given.load_state_dict(some.state_dict())
    x = torch.randn(1, 7, arch.embed_dims)
    assert torch.equal(some(x), all_given(x))


def test_dropped_branches_leave_the_input(family):
    """With a probability next to 1 nothing is added, by no branch; in eval all is."""
    kind, arch, _ = family
    block = randomise(kind(arch, 1 - 1e-7))
    x = torch.randn(3, 5, arch.embed_dims)
    assert torch.equal(block(x), x)
    assert not torch.isclose(block.eval()(x), x).all(-1).any()


def test_a_branch_is_dropped_for_some_samples_and_scaled_for_the_others(family):
    kind, arch, _ = family
    block = randomise(kind(arch, 0.5)).double()
    # The branches by themselves: the first one from the input, the second one from what the first one left.
    branches = [(block.norm, block.mixer)] if hasattr(block, "norm") else [(block.norm1, block.mixer)]
    if hasattr(block, "norm2"):
        branches.append((block.norm2, block.mlp if hasattr(block, "mlp") else block.ffn))
    x = torch.randn(1, 5, arch.embed_dims, dtype=torch.float64)
    possible = [x]
    for norm, branch in branches:
        possible = [there + keep * 2 * branch(norm(there)) for there in possible for keep in (0, 1)]
    out = block(x.expand(64, -1, -1))
    matches = torch.stack([(out - one).abs().amax((1, 2)) < 1e-9 for one in possible])
    assert (matches.sum(0) == 1).all() and matches.any(1).all()


class Adds(torch.nn.Module):
    """A branch that adds 2^-12 everywhere: next to 1 too little for 16 bits."""

    def forward(self, x):
        return torch.full_like(x, 2**-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_residual_is_kept_in_fp32(family, dtype):
    kind, arch, _ = family
    block = kind(arch).to(dtype)
    names = [name for name in ("mixer", "mlp", "ffn") if hasattr(block, name)]
    for name in names:
        setattr(block, name, Adds())
    x = torch.ones(1, 4, arch.embed_dims)
    out = block(x)
    assert out.dtype == torch.float32
    assert (out == 1 + len(names) * 2**-12).all()


class LowRank(torch.nn.Module):
    """A projection with a low-rank term beside it, as PEFT puts in its place; the weight alone is not all of it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features) / 4)
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2) / 4)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_what_is_put_in_a_projections_place_counts(name):
    kind, arch, equations = FAMILIES["mamba"]
    block = randomise(kind(arch, 0.0, 3, 2)).double()
    weights = dict(block.named_parameters())
    wrapped = LowRank(getattr(block.mixer, name)).double()
    setattr(block.mixer, name, wrapped)
    x = torch.randn(2, 11, arch.embed_dims, dtype=torch.float64)
    merged = weights | {f"mixer.{name}.weight": wrapped.weight + wrapped.up @ wrapped.down}
    expected = equations(merged, x, rope_scale=3, delta_scale=2)
    assert_close(block(x), expected, "output", 1e-12)
    block(x).sum().backward()
    assert wrapped.down.grad.abs().max() > 0 and wrapped.up.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_a_projections_hooks_are_called(name):
    kind, arch, _ = FAMILIES["mamba"]
    block = randomise(kind(arch))
    x = torch.randn(1, 5, arch.embed_dims)
    before, seen = block(x), []
    hook = getattr(block.mixer, name).register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert_close(block(x), before, "output with a hook", 1e-5)
    assert len(seen) == 1
    hook.remove()
    assert torch.equal(block(x), before)
