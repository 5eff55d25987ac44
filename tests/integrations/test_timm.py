"""timm's own interface on every size of every family."""

import copy
import pickle
import shutil
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

timm = pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")

from backbones.defocus import FAMILIES

VARIANTS = {
    "defocus_mamba_small": ("DefocusMamba", dict(embed_dims=64, inner_dims=128, depth=3, dt_rank=4)),
    "defocus_vit_small": ("DefocusViT", dict(embed_dims=32, depth=3, num_heads=2)),
    "defocus_retnet_base": (
        "DefocusRetNet",
        dict(embed_dims=32, depth=3, num_heads=2, value_dims=64, ffn_dims=48),
    ),
}


def tiny(name, pretrained=False, **changes):
    return timm.create_model(name, pretrained, arch=VARIANTS[name][1], **changes)


def test_every_variant_is_listed_and_created():
    names = timm.list_models("defocus_*")
    assert len(names) == sum(len(family.block.archs) for family in FAMILIES.values()) == 6
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=10, drop_path_rate=0.1)
        assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_step_reaches_every_parameter(name):
    model = tiny(name, num_classes=10).train()
    out = model(torch.randn(2, 3, 48, 32))
    F.cross_entropy(out, torch.tensor([1, 7])).backward()
    assert out.shape == (2, 10)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_dropout_stands_before_both_heads_in_training_alone():
    model = tiny("defocus_vit_small", num_classes=10, drop_rate=1.0)
    for head in (model.head, model.head2):
        torch.nn.init.normal_(head.bias)
    images = torch.randn(2, 3, 48, 32)
    # Of tokens that are all dropped the heads see zeros, and say their biases.
    biases = (model.head.bias.log_softmax(-1) + model.head2.bias.log_softmax(-1)) / 2
    torch.testing.assert_close(model.train()(images), biases.expand(2, -1))
    tokens = model.forward_features(images)
    assert not model.forward_head(tokens, pre_logits=True).any()
    torch.testing.assert_close(model.eval()(images), model.head(tokens[:, -1]))


def test_both_heads_are_trained_together():
    model = tiny("defocus_vit_small", num_classes=10)
    images, target = torch.randn(2, 3, 48, 32), torch.tensor([1, 7])
    tokens = model.forward_features(images)
    main, auxiliary = model.forward_heads(tokens)
    out = model.train()(images)
    # Where cross entropy takes the logits as log-probabilities it is the mean of the two.
    mean = (F.cross_entropy(main, target) + F.cross_entropy(auxiliary, target)) / 2
    assert not torch.allclose(main, auxiliary)
    torch.testing.assert_close(F.nll_loss(out, target), mean)
    torch.testing.assert_close(model.eval()(images), main)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_only(name):
    model = tiny(name, features_only=True, out_indices=(0, -1))
    maps = model(torch.randn(2, 3, 50, 33))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 4, 3) for c in model.feature_info.channels()]
    assert model.feature_info.reduction() == [16, 16]
    assert not any("head" in n for n, _ in model.named_parameters())


def test_questions_that_timm_asks():
    model = tiny("defocus_mamba_small", num_classes=0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, model.num_features)
    model.reset_classifier(7)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert model.get_classifier() is model.head
    model.set_grad_checkpointing()
    assert model.with_cp
    assert "blocks.0.mixer.A_log" in model.no_weight_decay()
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(), reverse=True)
    ids = {name: groups[name] for name, _ in model.named_parameters()}
    assert ids["cls_token"] == ids["patch_embed.proj.bias"] == 0
    assert [ids[f"blocks.{i}.mixer.A_log"] for i in range(3)] == [1, 2, 3]
    assert ids["norm.weight"] == 3 < ids["head.weight"] == ids["head2.bias"]


@pytest.mark.parametrize("name", VARIANTS)
def test_maps_are_those_of_the_plain_backbone(name):
    model = tiny(name, num_classes=5).eval()
    family, arch = VARIANTS[name]
    plain = FAMILIES[family](arch, out_indices=(0, 1, 2)).eval()
    weights = {k.replace("patch_embed.proj.", "patch_embed.projection."): v for k, v in model.state_dict().items()}
    plain.load_state_dict({k: v for k, v in weights.items() if not k.startswith("head")})
    # The released classifiers' norm, which the maps of a classifier pass.
    plain.norm.eps = 1e-6
    image = torch.randn(2, 3, 50, 33)
    with torch.no_grad():
        expected = plain(image)
        tokens, maps = model.forward_intermediates(image)
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
        assert torch.equal(tokens, model.forward_features(image))
        (first, last) = model.forward_intermediates(image, [0, 2], norm=True, intermediates_only=True)
        normed = F.layer_norm(
            expected[0].permute(0, 2, 3, 1), (model.embed_dim,), model.norm.weight, model.norm.bias, 1e-6
        )
        torch.testing.assert_close(first, normed.permute(0, 3, 1, 2))
        assert torch.equal(last, expected[2])


@pytest.mark.parametrize("name", VARIANTS)
def test_maps_and_tokens_are_of_one_pass(name):
    """With stochastic depth a second pass would be through other blocks."""
    model = tiny(name, drop_path_rate=0.9).train()
    calls = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    tokens, (last,) = model.forward_intermediates(torch.randn(4, 3, 32, 32), indices=1)
    assert len(calls) == 3
    assert torch.equal(last.flatten(2).mT, tokens[:, :-1])


def test_features_leave_nothing_trainable_that_does_not_run():
    model = tiny("defocus_mamba_small", features_only=True, out_indices=(0, 1))
    sum(m.square().sum() for m in model(torch.randn(1, 3, 32, 32))).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_names_are_those_of_the_parameters(name):
    model = tiny(name, num_classes=3)
    assert list(model.state_dict()) == [n for n, _ in model.named_parameters()]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model) and copied.state_dict().keys() == model.state_dict().keys()


@pytest.fixture
def released(tmp_path):
    """A file as the release has them, of a tiny model with the large one's heads: average, last step, arguments."""
    model = timm.create_model("defocus_mamba_large", arch=VARIANTS["defocus_mamba_small"][1])
    average = {k: v + 1 for k, v in model.state_dict().items()}
    content = {"model": model.state_dict(), "model_ema": average, "args": Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "cls.pth")
    return tmp_path / "cls.pth", average


def large(path, **settings):
    overlay = dict(file=str(path))
    arch = VARIANTS["defocus_mamba_small"][1]
    return timm.create_model("defocus_mamba_large", True, pretrained_cfg_overlay=overlay, arch=arch, **settings)


def test_pretrained(released):
    path, average = released
    model = large(path)
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


def test_fine_tuning_with_other_classes_and_channels(released):
    path, average = released
    model = large(path, num_classes=10, in_chans=1)
    state = model.state_dict()
    assert state["head.2.weight"].shape == state["head2.2.weight"].shape == (10, 192)
    new = {f"{head}.2.{part}" for head in ("head", "head2") for part in ("weight", "bias")}
    for name, value in state.items():
        if name == "patch_embed.proj.weight":
            # timm's own rule: grey sees the sum of the colours.
            torch.testing.assert_close(value, average[name].sum(1, keepdim=True))
        elif name not in new:
            assert torch.equal(value, average[name]), name
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 10)


def test_scales_of_the_large_one_are_those_of_its_weights(released):
    path, _ = released
    for model, scales in (
        (timm.create_model("defocus_mamba_large", arch=VARIANTS["defocus_mamba_small"][1]), (1.0, 1.0)),
        (large(path), (4.0, 2.0)),
        (large(path, rope_scale=1.0, delta_scale=1.0), (1.0, 1.0)),
    ):
        mixer = model.blocks[0].mixer
        assert (mixer.rope_scale, mixer.delta_scale) == scales


def test_a_download_with_a_namespace(released, tmp_path, monkeypatch):
    """torch.hub reads it as data; the arguments of timm's script are such."""
    path, average = released
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, to, *_, **__: shutil.copy(path, to))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    overlay = dict(url="https://example.org/cls.pth", hf_hub_id="")
    arch = VARIANTS["defocus_mamba_small"][1]
    model = timm.create_model("defocus_mamba_large", True, pretrained_cfg_overlay=overlay, arch=arch)
    assert torch.equal(model.cls_token, average["cls_token"])


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="drop_pth_rate"):
        tiny("defocus_vit_small", drop_pth_rate=0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_detectors_backbone_comes_in_as_checkpoint_path(name, tmp_path):
    family, arch = VARIANTS[name]
    weights = FAMILIES[family](arch).state_dict()
    detector = {f"backbone.net.{k}": v for k, v in weights.items()} | {"decode_head.bias": torch.zeros(3)}
    torch.save({"state_dict": detector}, tmp_path / "iter_2.pth")
    model = tiny(name, num_classes=0, checkpoint_path=str(tmp_path / "iter_2.pth"))
    features = tiny(name, True, features_only=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "iter_2.pth")))
    for state in (model.state_dict(), features.model.state_dict()):
        renamed = {k.replace("patch_embed.proj.", "patch_embed.projection."): v for k, v in state.items()}
        assert renamed.keys() == weights.keys() and all(torch.equal(v, weights[k]) for k, v in renamed.items())
    # A head that is to be there is missing, as timm says of any file.
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*head.weight"):
        tiny(name, num_classes=5, checkpoint_path=str(tmp_path / "iter_2.pth"))
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*conv1.weight"):
        tiny(name, num_classes=0, checkpoint_path=str(tmp_path / "resnet.pth"))
