"""What every family promises, whatever mixes its tokens."""

import numpy as np
import pytest
import torch

from backbones.defocus import FAMILIES
from backbones.mixers.sizes import resolve_arch
from tests.testing import TOLERANCE, assert_close

TINY = {
    "DefocusMamba": dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4),
    "DefocusViT": dict(embed_dims=48, depth=2, num_heads=3),
    "DefocusRetNet": dict(embed_dims=48, depth=2, num_heads=3, value_dims=96, ffn_dims=64),
}


@pytest.fixture(params=FAMILIES)
def build(request):
    """Builds a small backbone of each family in turn."""

    def make(sizes=None, **changes):
        return FAMILIES[request.param](**{"arch": TINY[request.param] | (sizes or {}), **changes})

    return make


@pytest.mark.parametrize("section", [None, 32, (16, 48)])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (75, 107), (100, 1)])
def test_any_image_size(build, size, section):
    model = build(section_size=section, out_indices=(0, -1))
    maps = model(torch.randn(2, 3, *size))
    assert [m.shape for m in maps] == [(2, model.embed_dims, -(-size[0] // 16), -(-size[1] // 16))] * 2
    sum(m.square().sum() for m in maps).backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []


@pytest.mark.parametrize("section", [None, 32])
def test_later_tokens_change_no_earlier_bit(build, section):
    from backbones.layers.scan_order import to_sequence

    model = build(section_size=section).eval()
    # The order in which the 4 × 4 patches are read.
    order = to_sequence(torch.arange(16).reshape(1, 4, 4, 1), section and (2, 2)).flatten()
    image = torch.randn(1, 3, 64, 64)
    for position in (1, 7, 15):
        patch = order[position].item()
        changed = image.clone()
        changed[..., patch // 4 * 16 :, patch % 4 * 16 :][..., :16, :16] += 1
        with torch.no_grad():
            before, after = (model(x)[0].flatten(2)[..., order] for x in (image, changed))
        assert torch.equal(before[..., :position], after[..., :position])
        assert (before[..., position:] != after[..., position:]).any(1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("section", [None, 64])
def test_a_gpu_gives_what_the_cpu_gives(build, section, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = build(section_size=section, rope_scale=3.0, delta_scale=2.0, out_indices=(0, -1))
    image = torch.randn(2, 3, 150, 230)
    maps = model(image)
    weights = [torch.randn_like(m) for m in maps]
    sum((m * w).sum() for m, w in zip(maps, weights)).backward()
    on_cpu = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    on_gpu = model(image.cuda())
    sum((m * w.cuda()).sum() for m, w in zip(on_gpu, weights)).backward()
    for actual, truth in zip(on_gpu, maps):
        assert_close(actual, truth, "map")
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, on_cpu[name], name, 5e-5, floor=1e-6)


def test_each_block_gets_both_scales(build):
    model = build(rope_scale=3.0, delta_scale=5.0).eval()
    kind = type(model).block
    sequence = torch.randn(1, 40, model.embed_dims)
    for block in model.blocks:
        same, swapped = (kind(resolve_arch(TINY[type(model).__name__], kind.archs), 0.0, *s) for s in ((3, 5), (5, 3)))
        for other in (same, swapped):
            other.load_state_dict(block.state_dict())
        assert torch.equal(block(sequence), same(sequence))
        assert not torch.equal(block(sequence), swapped(sequence))


def scan_order(rows, columns, section):
    """(row, column) of each token of a padded grid, in the order in which it is read."""
    height, width = section or (1, columns)
    return [
        (top + row, left + column)
        for top in range(0, rows, height)
        for left in range(0, columns, width)
        for row in range(height)
        for column in range(width)
    ]


@pytest.mark.parametrize("section", [None, (32, 48), (48, 32)])
def test_maps_are_what_the_blocks_give(build, section):
    """Each token of a block's output where it lies on the image; the last block's, and no other, after the norm."""
    model = build(section_size=section, out_indices=(0, 1)).double()
    with torch.no_grad():
        model.norm.weight.normal_()
        model.norm.bias.normal_()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: seen.append((*inputs, output)))
    image = torch.randn(2, 3, 75, 90, dtype=torch.float64)
    with torch.no_grad():
        maps, sequence = model(image), model.forward_sequence(image)
    (tokens, first), (_, last) = seen[:2]
    mean, deviation = last.mean(-1, keepdim=True), (last.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = (last - mean) / deviation * model.norm.weight + model.norm.bias
    assert_close(sequence, normed, "sequence")
    # 5 by 6 patches; a section of 32 or 48 pixels pads one row of them.
    padded = torch.nn.functional.pad(image, (0, 6, 0, 96 - 75 if section else 80 - 75))
    order = scan_order(6 if section else 5, 6, section and (section[0] // 16, section[1] // 16))
    assert tokens.shape == (2, len(order) + 1, model.embed_dims)
    assert torch.equal(tokens[:, -1:], model.cls_token.expand(2, 1, -1))
    projection = model.patch_embed.projection
    for place, (row, column) in enumerate(order):
        patch = padded[:, :, row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16]
        expected = torch.einsum("bchw,dchw->bd", patch, projection.weight) + projection.bias
        assert_close(tokens[:, place], expected, f"token {place}")
        if row < 5:
            assert torch.equal(maps[0][:, :, row, column], first[:, place])
            assert_close(maps[1][:, :, row, column], normed[:, place], f"last map at {row}, {column}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_residual_stream_of_a_16_bit_model_is_fp32(build, dtype):
    """Blocks that each add 2^-12, which next to 1 is nothing in 16 bits: 32 of them are 2^-7."""

    class Adds(torch.nn.Module):
        def forward(self, x):
            return x + 2**-12

    model = build(out_indices=(0,)).to(dtype)
    model.blocks[0] = torch.nn.Sequential(*(Adds() for _ in range(32)))
    with torch.no_grad():
        model.patch_embed.projection.weight.zero_()
        model.patch_embed.projection.bias.fill_(1)
    (out,) = model(torch.randn(1, 3, 32, 32, dtype=dtype))
    assert out.dtype == dtype and (out == 1 + 2**-7).all()


@pytest.mark.parametrize("how", ["autocast", "whole model"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(build, dtype, how):
    model, image = build(section_size=64), torch.randn(2, 3, 100, 150)
    expected = model(image)[0].detach()
    if how == "autocast":
        with torch.autocast("cpu", dtype):
            (out,) = model(image)
    else:
        model = model.to(dtype)
        (out,) = model(image.to(dtype))
        assert out.dtype == dtype
    out.float().square().mean().backward()
    assert_close(out.float(), expected, "output", TOLERANCE[dtype])
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_checkpointing_runs_blocks_twice_for_the_same_gradients(build):
    plain, recomputing = build(drop_path_rate=0.5), build(drop_path_rate=0.5, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    image = torch.randn(4, 3, 32, 48)
    runs = {plain: [], recomputing: []}
    for model in runs:
        for i, block in enumerate(model.blocks):
            block.mixer.register_forward_pre_hook(lambda mixer, inputs, i=i, model=model: runs[model].append(i))
        torch.manual_seed(3)
        model.train()(image)[0].square().sum().backward()
    assert runs == {plain: [0, 1], recomputing: [0, 1, 1, 0]}
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters()):
        assert torch.equal(a.grad, b.grad), name
    with torch.no_grad():
        recomputing(image)
    assert runs[recomputing] == [0, 1, 1, 0, 0, 1]


def test_stochastic_depth_acts_on_the_whole_backbone(build):
    """At a rate next to 1 the last block adds nothing in training, the first one, whose rate is 0, all it has."""
    model = build(drop_path_rate=1 - 1e-7, out_indices=(0, 1)).train()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: seen.append((*inputs, output)))
    model(torch.randn(2, 3, 32, 48))
    assert not torch.equal(*seen[0]) and torch.equal(*seen[1])
    model.set_drop_path_rate(0.0)
    model(torch.randn(2, 3, 32, 48))
    assert not torch.equal(*seen[3])


def test_compiles_as_one_graph_and_exports(build):
    # Each further block takes as long as the first.
    model = build(dict(depth=1), section_size=32)
    image = torch.randn(2, 3, 40, 50)
    expected = model(image)[0]
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(image)[0]
    assert_close(out, expected.detach(), "compiled", 1e-6)
    parameters = list(model.parameters())
    weight = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((out * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
    ):
        assert_close(a, b, "compiled gradient", 1e-6, floor=1e-3)
    exported = torch.export.export(model.eval(), (image,))
    assert_close(exported.module()(image)[0], expected.detach(), "exported", 1e-6)


def test_a_nan_image_stays_in_its_sample(build):
    model, images = build(section_size=32).eval(), torch.randn(3, 3, 40, 50)
    with torch.no_grad():
        clean = model(images)[0]
        images[1, 0, 3, 3] = float("nan")
        out = model(images)[0]
    assert out[1].isnan().any()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


def test_weight_decay_and_layer_ids(build):
    model = build()
    spared = model.no_weight_decay()
    assert "cls_token" in spared and all(
        p.ndim == 1 or n in spared or n.endswith("weight") for n, p in model.named_parameters()
    )
    assert {
        f"blocks.{i}.{n}"
        for i, b in enumerate(model.blocks)
        for n, _ in b.named_parameters()
        if n.endswith(type(b).undecayed)
    } <= spared
    ids = {name: model.get_layer_id(name) for name, _ in model.named_parameters()}
    assert set(ids.values()) == {0, 1, 2, 3} and ids["norm.weight"] == 3


def test_non_causal_vit_sees_everything():
    model = FAMILIES["DefocusViT"](TINY["DefocusViT"], causal=False).eval()
    image = torch.randn(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 48:, 48:] += 1
    with torch.no_grad():
        before, after = (model(x)[0].flatten(2) for x in (image, changed))
    assert (before != after).any(1).all()


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 1), (0, 2), (-1,)])
def test_what_is_trainable_gets_a_gradient(build, out_indices):
    """DistributedDataParallel waits for each trainable parameter's gradient."""
    model = build(arch=TINY[build().__class__.__name__] | dict(depth=3), out_indices=out_indices)
    state = set(model.state_dict())
    for _ in range(2):
        model.train().zero_grad()
        sum(m.square().sum() for m in model(torch.randn(2, 3, 40, 50))).backward()
        parameters = dict(model.named_parameters())
        assert [name for name, p in parameters.items() if p.requires_grad and p.grad is None] == []
    # What runs is trainable, and what is not stays in checkpoints.
    last = model.out_indices[-1]
    assert all(p.requires_grad for block in model.blocks[: last + 1] for p in block.parameters())
    assert not any(p.requires_grad for block in model.blocks[last + 1 :] for p in block.parameters())
    assert model.norm.weight.requires_grad == (last == 2) and set(parameters) == state


def test_numbers_of_other_libraries_and_none(build):
    model = build(section_size=np.int64(32), patch_size=np.int32(16), out_indices=np.array([0, 1]))
    assert model.section == (2, 2) and model.out_indices == (0, 1) and len(model(torch.randn(1, 3, 40, 50))) == 2
    for arguments, message in [
        (dict(section_size=224.0), r"section_size takes whole numbers, as 224, got 224\.0"),
        (dict(section_size=(32, None)), "section_size takes whole numbers, as 224, got None"),
        (dict(out_indices=None), "out_indices takes whole numbers, as 224, got None"),
        (dict(out_indices=[0.5]), r"out_indices takes whole numbers, as 224, got 0\.5"),
        (dict(patch_size="16"), "patch_size takes whole numbers, as 224, got '16'"),
    ]:
        with pytest.raises(TypeError, match=message):
            build(**arguments)
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        build(patch_size=0)
    with pytest.raises(ValueError, match=r"the batch is empty: got images \(0, 3, 32, 32\)"):
        build()(torch.zeros(0, 3, 32, 32))
    with pytest.raises(ValueError, match=r"H and W at least 1, got \(1, 3, 0, 32\)"):
        build()(torch.zeros(1, 3, 0, 32))


@pytest.mark.parametrize(
    "family, arguments, message",
    [
        ("DefocusViT", dict(arch=dict(embed_dims=50, depth=1, num_heads=3)), "cannot be cut into 3 heads"),
        ("DefocusViT", dict(arch="large"), "choose one of small, base"),
        ("DefocusViT", dict(arch=dict(embed_dims=48, depth=1, num_heads=3, mlp_ratio=0)), "mlp_ratio must be positive"),
        (
            "DefocusRetNet",
            dict(arch=dict(embed_dims=48, depth=1, num_heads=3, value_dims=50, ffn_dims=8)),
            "value_dims=50",
        ),
    ],
)
def test_bad_sizes(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES[family](**arguments)


def test_only_the_vit_can_be_non_causal():
    with pytest.raises(TypeError, match="causal"):
        FAMILIES["DefocusMamba"](TINY["DefocusMamba"], causal=False)
