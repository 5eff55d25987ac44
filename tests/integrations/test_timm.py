"""timm's own interface on every size of every family."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

timm = pytest.importorskip("timm", reason="timm is not installed")

from backbones.checkpoints import load_pretrained
from backbones.defocus import FAMILIES

VARIANTS = {
    "defocus_mamba_small": ("DefocusMamba", dict(embed_dims=64, inner_dims=128, depth=3, dt_rank=4)),
    "defocus_vit_small": ("DefocusViT", dict(embed_dims=32, depth=3, num_heads=2)),
    "defocus_retnet_base": (
        "DefocusRetNet",
        dict(embed_dims=32, depth=3, num_heads=2, value_dims=64, ffn_dims=48),
    ),
}


def tiny(name, **changes):
    return timm.create_model(name, arch=VARIANTS[name][1], **changes)


def test_every_variant_is_listed_and_created():
    names = timm.list_models("defocus_*")
    assert len(names) == sum(len(family.block.archs) for family in FAMILIES.values()) == 6
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=10, drop_path_rate=0.1)
        assert model.backbone.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_step_reaches_every_parameter(name):
    model = tiny(name, num_classes=10).train()
    out = model(torch.randn(2, 3, 48, 32))
    F.cross_entropy(out, torch.tensor([1, 7])).backward()
    assert out.shape == (2, 10)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_both_heads_are_trained_together():
    model = tiny("defocus_vit_small", num_classes=10)
    images, target = torch.randn(2, 3, 48, 32), torch.tensor([1, 7])
    tokens = model.forward_features(images)
    main, auxiliary = model.forward_heads(tokens)
    out = model.train()(images)
    # Where cross entropy takes the logits as log-probabilities it is the mean of the two.
    mean = (F.cross_entropy(main, target) + F.cross_entropy(auxiliary, target)) / 2
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
    assert model.backbone.with_cp
    assert "backbone.blocks.0.mixer.A_log" in model.no_weight_decay()
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(), reverse=True)
    ids = {name: groups[name] for name, _ in model.named_parameters()}
    assert ids["backbone.cls_token"] == ids["backbone.patch_embed.projection.bias"] == 0
    assert [ids[f"backbone.blocks.{i}.mixer.A_log"] for i in range(3)] == [1, 2, 3]
    assert ids["backbone.norm.weight"] == 3 < ids["head.weight"] == ids["head2.bias"]


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="drop_pth_rate"):
        tiny("defocus_vit_small", drop_pth_rate=0.1)


def test_its_checkpoint_goes_into_a_detector(tmp_path):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from mmengine.registry import MODELS

    name = "defocus_retnet_base"
    family, arch = VARIANTS[name]
    model = tiny(name, num_classes=10)
    average = {k: v + 1 for k, v in model.state_dict().items()}
    # As timm's script saves it, its arguments included.
    content = {"state_dict": model.state_dict(), "state_dict_ema": average, "epoch": 3, "args": Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "last.pth.tar")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "last.pth.tar"))
    backbone = MODELS.build(dict(type=family, arch=arch, init_cfg=init_cfg))
    backbone.init_weights()
    assert all(torch.equal(v, model.backbone.state_dict()[k] + 1) for k, v in backbone.state_dict().items())
    report = load_pretrained(backbone, tmp_path / "last.pth.tar", container="state_dict")
    assert report.container == "state_dict"
