"""The networks that the paper compares De-focus with: without, or with fixed, decay and phase."""

import math

import pytest
import torch
import torch.nn.functional as F

from backbones import DefocusMamba, DefocusViT
from backbones.layers.bandpass import CHOICES
from backbones.mixers import RetNetBlock, ViTBlock
from tests.mixers.test_blocks import FAMILIES, randomise
from tests.testing import assert_close

# The half of a filter to its name in a state dict, in the mixer that keeps states and in those that have heads.
NAMES = dict(
    decay=("mixer.A_log", "mixer.bandpass.log_rate"),
    phase=("mixer.freq", "mixer.bandpass.freq"),
)
VIT, RETNET = FAMILIES["vit"][1], FAMILIES["retnet"][1]


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def filter_name(block, half):
    return next(
        name for name in NAMES[half] if hasattr(block.get_submodule(name.rpartition(".")[0]), name.split(".")[-1])
    )


@pytest.mark.parametrize("decay", CHOICES)
@pytest.mark.parametrize("phase", CHOICES)
def test_equals_the_equations_without_that_part(family, decay, phase):
    kind, arch, equations = family
    torch.manual_seed(0)
    block = randomise(kind(arch, 0.0, 3.0, 1.5, decay=decay, phase=phase)).double()
    x = torch.randn(2, 11, arch.embed_dims, dtype=torch.float64, requires_grad=True)
    leaves = dict(block.named_parameters())
    weights = dict(block.state_dict(keep_vars=True))
    # No decay is a rate of zero, no phase an angle of zero.
    for half, choice, nothing in (("decay", decay, -math.inf), ("phase", phase, 0.0)):
        name = filter_name(block, half)
        assert (name in weights) == (choice != "none")
        assert (name in leaves) == (choice == "learned")
        weights.setdefault(
            name, torch.full_like(block.get_buffer(name) if name not in leaves else leaves[name], nothing)
        )
    out, expected = block(x), equations(weights, x, rope_scale=3.0, delta_scale=1.5)
    assert_close(out, expected)
    weight = torch.randn_like(out)
    wanted = [x, *leaves.values()]
    grads = torch.autograd.grad((out * weight).sum(), wanted)
    truth = torch.autograd.grad((expected * weight).sum(), wanted)
    for name, grad, true in zip(("x", *leaves), grads, truth, strict=True):
        assert_close(grad, true, name, tolerance=1e-8)


@pytest.mark.parametrize("causal", [True, False])
def test_vit_without_filters_is_torchs_attention(causal):
    mixer = ViTBlock(VIT, causal=causal, decay="none", phase="none").mixer.double()
    x = torch.randn(2, 37, VIT.embed_dims, dtype=torch.float64)
    q, k, v = mixer.qkv(x).unflatten(-1, (3, VIT.num_heads, -1)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    assert_close(mixer(x), mixer.proj(expected))


def test_fixed_retnet_keeps_the_published_decays():
    """e^λ = 1 - 1/32 … 1 - 1/512, as of RetNet: at a distance of 100 tokens."""
    decay, _ = RetNetBlock(RETNET, decay="fixed").mixer.bandpass()
    kept = torch.exp(100 * decay.double())
    assert_close(kept, torch.tensor([(1 - 1 / 32) ** 100, (1 - 1 / 128) ** 100, (1 - 1 / 512) ** 100]), tolerance=1e-5)


@pytest.mark.parametrize("half", ["decay", "phase"])
def test_fixed_takes_the_values_of_a_checkpoint_and_keeps_them(family, half):
    kind, arch, _ = family
    learned = randomise(kind(arch))
    fixed = kind(arch, **{half: "fixed"})
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    fixed.load_state_dict(learned.state_dict())
    x = torch.randn(1, 9, arch.embed_dims)
    assert torch.equal(fixed(x), learned(x))
    optimizer = torch.optim.SGD(fixed.parameters(), lr=0.1)
    fixed(x).square().sum().backward()
    optimizer.step()
    name = filter_name(fixed, half)
    assert torch.equal(fixed.state_dict()[name], learned.state_dict()[name])


@pytest.mark.parametrize("half", ["decay", "phase"])
def test_another_choice_is_refused(family, half):
    kind, arch, _ = family
    with pytest.raises(ValueError, match=f"{half} must be one of 'learned', 'fixed', 'none', got 'off'"):
        kind(arch, **{half: "off"})


def test_a_backbone_hands_them_to_its_blocks():
    backbone = DefocusViT(dict(embed_dims=24, depth=2, num_heads=3), decay="none", phase="fixed")
    names = backbone.state_dict().keys()
    assert not any(name.endswith("log_rate") for name in names)
    assert sum(name.endswith("bandpass.freq") for name in names) == 2
    assert not any("bandpass" in name for name in backbone.no_weight_decay())


def test_what_a_mixer_does_not_have_is_refused():
    arch = dict(embed_dims=32, inner_dims=64, depth=1, dt_rank=4)
    with pytest.raises(TypeError, match="causal"):
        DefocusMamba(arch, causal=False)
