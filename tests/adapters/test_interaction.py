import pytest
import torch

from backbones import AdaptedBackbone, InteractionAdapter
from backbones.adapters import tap_indices
from backbones.adapters.interaction import DeformableAttention
from backbones.defocus import FAMILIES
from tests.adapters import reference
from tests.testing import TOLERANCE, assert_close

ARCHS = {
    "DefocusMamba": dict(embed_dims=48, inner_dims=64, depth=4, dt_rank=4),
    "DefocusViT": dict(embed_dims=48, depth=4, num_heads=3),
    "DefocusRetNet": dict(embed_dims=48, depth=4, num_heads=3, value_dims=96, ffn_dims=64),
}


def build(family="DefocusMamba", settings=None, **changes):
    net = FAMILIES[family](**{"arch": ARCHS[family], "out_indices": (0, 1, 2, 3), **changes})
    return AdaptedBackbone(net, InteractionAdapter.fit(net, **(settings or {})))


def last_map_within(model, image):
    """The plain backbone's last map as it is while the adapter runs."""
    seen = []
    hook = model.net.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(image)
    hook.remove()
    _, grid = model.net.tokenize(image)
    return grid.to_map(seen[0])


@pytest.mark.parametrize("section", [None, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_identity_on_the_backbone(family, section):
    model = build(family, section_size=section).eval()
    image = torch.randn(2, 3, 75, 107)
    with torch.no_grad():
        assert torch.equal(last_map_within(model, image), model.net(image)[-1])
        # With the gates open the prior changes what the backbone sees.
        for injector in model.adapter.injectors:
            injector.gate.fill_(0.5)
        assert not torch.allclose(last_map_within(model, image), model.net(image)[-1], atol=1e-3)


@pytest.mark.parametrize("out_channels, num_outs", [(None, 4), (20, 5)])
@pytest.mark.parametrize("family, section", [("DefocusMamba", None), ("DefocusViT", (32, 48)), ("DefocusRetNet", 64)])
def test_equals_the_adapter_written_out(family, section, out_channels, num_outs):
    """Outputs and all gradients, every weight at random, on an image that no stride divides."""
    settings = dict(out_channels=out_channels, num_outs=num_outs, num_heads=3, num_points=2, prior_dims=8)
    arch = {**ARCHS[family], "depth": 2}
    model = build(family, settings, arch=arch, out_indices=(0, 1), section_size=section).double()
    with torch.no_grad():
        for parameter in model.parameters():
            # Offsets of a cell or two, attention that prefers some points, gates that are open.
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    image = torch.randn(2, 3, 75, 100, dtype=torch.float64)
    expected, outs = reference.interaction(model, image, 3, 2, num_outs), model(image)
    # Places are in fp32, whatever the model's dtype.
    for i, (out, truth) in enumerate(zip(outs, expected, strict=True)):
        assert_close(out, truth, f"output {i}", 3e-5)
    names = [name for name, _ in model.named_parameters() if name != "net.cls_token"]
    leaves = [model.get_parameter(name) for name in names]
    weights = [torch.randn_like(out) for out in outs]
    grads, truths = (
        torch.autograd.grad(sum((out * weight).sum() for out, weight in zip(found, weights)), leaves)
        for found in (outs, expected)
    )
    for name, grad, truth in zip(names, grads, truths):
        assert truth.any(), f"{name} does not count here"
        assert_close(grad, truth, f"gradient of {name}", 1e-4)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (75, 107)])
def test_scales(size, patch_size):
    model = build(settings=dict(out_channels=32, num_outs=5), patch_size=patch_size)
    outs = model(torch.randn(1, 3, *size))
    rows, columns = (-(-side // patch_size) for side in size)
    expected = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns)]
    for _ in range(2):
        expected.append(tuple(-(-side // 2) for side in expected[-1]))
    assert [tuple(out.shape) for out in outs] == [(1, 32, *sides) for sides in expected]
    assert model.out_channels == (32,) * 5
    assert model.out_strides == tuple(patch_size * 2**i // 4 for i in range(5))


@pytest.mark.parametrize("start, num_outs", [(0, 1), (1, 4), (3, 2)])
def test_start_level_leaves_out_the_finer_scales(start, num_outs):
    whole, some = build(), build(settings=dict(start_level=start, num_outs=num_outs))
    weights = whole.state_dict()
    for name in some.state_dict():
        # Norms are counted from the first output on.
        if name.startswith("adapter.norms."):
            _, _, i, rest = name.split(".")
            weights[name] = whole.state_dict()[f"adapter.norms.{int(i) + start}.{rest}"]
    some.load_state_dict({name: weights[name] for name in some.state_dict()})
    image = torch.randn(1, 3, 64, 80)
    outs = some(image)
    assert len(outs) == num_outs and some.out_strides == tuple(4 * 2 ** (start + i) for i in range(num_outs))
    for out, expected in zip(outs, whole(image)[start:]):
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients_reach_every_part(with_cp):
    model = build(with_cp=with_cp)
    with torch.no_grad():
        for injector in model.adapter.injectors:
            injector.gate.fill_(0.1)
        for module in model.modules():
            if isinstance(module, DeformableAttention):
                module.attention_weights.weight.normal_(std=0.1)
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # No image token sees the class token, which comes last.
    assert still == ["net.cls_token"]


def test_at_the_start_the_gates_learn_first():
    model = build()
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    for injector in model.adapter.injectors:
        assert injector.gate.grad.abs().max() > 0
        assert not injector.attention.value_proj.weight.grad.any()


def test_plain_weights_load_strictly():
    model = build()
    plain = FAMILIES["DefocusMamba"](ARCHS["DefocusMamba"])
    model.net.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(last_map_within(model, image), plain(image)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(dtype):
    model = build().eval()
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", dtype):
            autocast = model(image)
        whole = model.to(dtype)(image.to(dtype))
    for a, b, c in zip(autocast, whole, expected):
        assert_close(a.float(), c, "autocast", 2 * TOLERANCE[dtype])
        assert_close(b.float(), c, "whole model", 2 * TOLERANCE[dtype])


def test_layers_for_the_decay_of_learning_rates():
    model = build()
    assert model.get_layer_id("net.patch_embed.projection.weight") == 0
    assert model.get_layer_id("net.blocks.2.norm.weight") == 3
    assert model.get_layer_id("net.norm.weight") == model.get_layer_id("adapter.prior.projections.0.weight") == 5
    undecayed = model.no_weight_decay()
    assert {"net.cls_token", "net.blocks.0.mixer.A_log", "adapter.injectors.0.gate"} <= undecayed
    assert "adapter.finest.weight" not in undecayed


def test_misfits_are_refused_before_training():
    with pytest.raises(ValueError, match=r"the last being 3, got out_indices=\(0, 1, 2\)"):
        build(out_indices=(0, 1, 2))
    with pytest.raises(ValueError, match="4 groups needs"):
        build(out_indices=(1, 3), settings=dict(num_groups=4))
    with pytest.raises(ValueError, match="power of two"):
        build(patch_size=12)
    with pytest.raises(ValueError, match="num_heads=5 must divide"):
        build(settings=dict(num_heads=5))
    net = FAMILIES["DefocusMamba"](ARCHS["DefocusMamba"], out_indices=tap_indices(4), patch_size=8)
    with pytest.raises(ValueError, match="built for patch_size=16, the backbone has 8"):
        AdaptedBackbone(net, InteractionAdapter(48))
