"""The backbone against runs of the released modules, and what its users rely on."""

import json

import pytest
import torch

from backbones import DefocusMamba
from backbones.mixers.mamba import MambaArch, MambaBlock
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.testing import assert_close, load_fixture, skip_reason

TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
BACKENDS = [
    (device, name)
    for device in DEVICES
    for name, backend in DEFOCUS_SCAN.backends.items()
    if skip_reason(backend, device) is None
]


def tiny(**changes):
    return DefocusMamba(**{"arch": TINY, **changes})


@pytest.mark.parametrize("device, backend", BACKENDS)
@pytest.mark.parametrize("name", ["block", "backbone_raster", "backbone_section"])
def test_equals_the_released_modules(name, device, backend, monkeypatch):
    monkeypatch.setenv("DEFOCUS_SCAN_BACKEND", backend)
    # The patch embedding is a convolution, which cuDNN may do in TF32 unless it is told not to.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    tensors, weights, settings = load_fixture(name)
    if name == "block":
        model = MambaBlock(MambaArch(**TINY), rope_scale=20.0, delta_scale=4.57)
    else:
        section = int(settings["pretrain_size"]) if settings["section_rearrangement"] == "True" else None
        model = tiny(section_size=section, rope_scale=20.0, delta_scale=4.57)
    model.load_state_dict(weights)
    model.eval().to(device)
    image = tensors["input"].to(device).requires_grad_()
    out = model(image)
    out = out if name == "block" else out[0]
    assert_close(out, tensors["output"], "output", 4e-6)
    (out * tensors["loss_weight"].to(device)).sum().backward()
    assert_close(image.grad, tensors["grad/input"], "input gradient", 3e-5)
    for parameter_name, parameter in model.named_parameters():
        truth = tensors[f"grad/{parameter_name}"]
        if truth.any():
            assert_close(parameter.grad, truth, parameter_name, 3e-5)
        else:
            # The class token comes last: no image token sees it.
            assert parameter_name == "cls_token" and not parameter.grad.any()


@pytest.mark.parametrize("arch, millions", [("small", 24.3), ("base", 91.11), ("large", 317.67)])
def test_published_parameter_counts(arch, millions):
    with torch.device("meta"):
        model = DefocusMamba(arch)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(count, 1 if arch == "small" else 2) == millions


@pytest.mark.parametrize("name, arch", [("base", "base"), ("large", "large")])
def test_released_names_and_shapes(name, arch):
    with open(f"tests/data/detector_keys_{name}.json") as file:
        released = json.load(file)
    prefix = "backbone."
    released = {k.removeprefix(prefix): tuple(v) for k, v in released.items() if k.startswith(prefix)}
    with torch.device("meta"):
        model = DefocusMamba(arch)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == released


def test_17_by_3000():
    with torch.no_grad():
        (out,) = tiny(section_size=224)(torch.randn(1, 3, 17, 3000))
    assert out.shape == (1, 64, 2, 188) and out.isfinite().all()


def test_positions_are_counted_in_fp32_under_bf16():
    # bf16 has no 257: were positions kept in it, neighbours there would share one angle, and this would not hold.
    model = tiny(arch={**TINY, "depth": 1}).to(torch.bfloat16)
    reference = tiny(arch={**TINY, "depth": 1})
    reference.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    image = torch.randn(1, 3, 16, 16 * 1200)
    with torch.no_grad():
        out, expected = model(image.bfloat16())[0], reference(image.bfloat16().float())[0]
    assert_close(out[..., -100:].float(), expected[..., -100:], "late tokens", 2e-2)


@pytest.mark.parametrize(
    "stages, trained",
    [
        (-1, {"cls_token", "patch_embed", "blocks.0", "blocks.1", "norm"}),
        (0, {"blocks.0", "blocks.1", "norm"}),
        (1, {"blocks.1", "norm"}),
        (2, set()),
    ],
)
def test_frozen_stages(stages, trained):
    model = tiny(frozen_stages=stages).train()
    found = {
        ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1])
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert found == trained
    assert model.training
    assert all(model.blocks[i].training == (i >= stages) for i in range(2))


def test_stochastic_depth_rises_linearly_over_blocks():
    model = tiny(arch={**TINY, "depth": 5}, drop_path_rate=0.4)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_blocks_after_the_last_map_are_not_run():
    model = tiny(arch={**TINY, "depth": 3}, out_indices=(0, 1))
    out = model(torch.randn(1, 3, 16, 16))
    sum(m.sum() for m in out).backward()
    assert all(p.grad is None for p in model.blocks[2].parameters())
    assert all(p.grad is not None for p in model.blocks[1].parameters())


def test_weight_decay_spares_vectors_and_the_scans_constants():
    spared = tiny().no_weight_decay()
    decayed = {name for name, _ in tiny().named_parameters()} - spared
    assert decayed == {"patch_embed.projection.weight"} | {
        f"blocks.{i}.mixer.{name}.weight"
        for i in range(2)
        for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    }
    assert {"cls_token", "blocks.0.mixer.A_log", "blocks.0.mixer.D", "blocks.1.mixer.freq"} <= spared


def test_layer_ids():
    model = tiny()
    assert model.get_layer_id("cls_token") == model.get_layer_id("patch_embed.projection.weight") == 0
    assert model.get_layer_id("blocks.0.mixer.A_log") == 1
    assert model.get_layer_id("blocks.1.norm.weight") == 2
    assert model.get_layer_id("norm.bias") == 3


def test_initial_values():
    model = tiny(arch={**TINY, "embed_dims": 256})
    # Not zero: a token of padding has the bias and nothing else, and RMSNorm's gradient at zero is 316.
    for weight in (model.patch_embed.projection.weight, model.patch_embed.projection.bias, model.cls_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    mixer = model.blocks[0].mixer
    n = torch.arange(1, 17)
    torch.testing.assert_close(mixer.A_log[5].exp(), n.float())
    torch.testing.assert_close(mixer.freq, (100 ** (-n / 16) - 0.01) / 0.99, rtol=1e-5, atol=1e-6)
    step = torch.nn.functional.softplus(mixer.dt_proj.bias)
    torch.testing.assert_close(step[[0, -1]], torch.tensor([0.001, 0.1]), rtol=1e-3, atol=0)
    assert (mixer.D == 1).all() and mixer.dt_proj.weight.abs().max() <= 4**-0.5
    assert abs(mixer.conv1d.weight.std().item() - 0.5**0.5) < 0.1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(arch="huge"), ValueError, "no arch 'huge': choose one of small, base, large"),
        (dict(arch=dict(TINY, widht=3)), ValueError, r"unknown keys \['widht'\]"),
        (dict(arch=dict(embed_dims=64)), ValueError, "lacks sizes.*inner_dims.*depth"),
        (dict(arch=7), TypeError, "arch must be one of small, base, large, or a dict"),
        (dict(arch=dict(TINY, embed_dims=50, inner_dims=100)), ValueError, "embed_dims=50.* norm groups of 64"),
        (dict(arch=dict(TINY, state_dims=15)), ValueError, "must be even, got 15"),
        (dict(arch=dict(TINY, depth=0)), ValueError, "depth must be a positive integer, got 0"),
        (dict(section_size=100), ValueError, "multiples of patch_size=16, got 100"),
        (dict(out_indices=(2,)), ValueError, r"-2\.\.1, got \(2,\)"),
        (dict(out_indices=(1, 0)), ValueError, "ascending"),
        (dict(frozen_stages=3), ValueError, r"-1 \(none\) to 2"),
        (dict(drop_path_rate=1.0), ValueError, r"\[0, 1\)"),
        (dict(rope_scale=0), ValueError, "rope_scale must be positive"),
        (dict(drop_pth_rate=0.1), TypeError, "drop_pth_rate"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny(**arguments)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 0, 16)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r"expected images \(b, 3, H, W\)"):
        tiny()(torch.zeros(shape))
