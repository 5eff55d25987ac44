"""The classifier: released layout, two heads, rising drop path."""

import json

import pytest
import torch
import torch.nn.functional as F

from backbones import DefocusMamba, DefocusRetNet, DefocusViT
from backbones.checkpoints import load_pretrained
from backbones.classifier import DefocusClassifier
from backbones.drop_path_schedule import DropPathSchedule, set_drop_path_rate

TINY = dict(embed_dims=64, inner_dims=128, depth=3, dt_rank=4)


@pytest.mark.parametrize(
    "size, classes, head", [("base", 1000, "linear"), ("large_1k", 1000, "mlp"), ("large_21k", 21841, "mlp")]
)
def test_released_classifiers_load_strictly(size, classes, head):
    with open(f"tests/data/classifier_keys_{size}.json") as file:
        released = {name: tuple(shape) for name, shape in json.load(file).items()}
    with torch.device("meta"):
        model = DefocusClassifier(DefocusMamba(size.split("_")[0]), classes, head)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == released
    weights = {name: torch.empty(shape, device="meta") for name, shape in released.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    assert set(weights) == set(released)


@pytest.mark.parametrize(
    "family, arch, head, millions",
    [
        (DefocusViT, "small", "linear", 22.4),
        (DefocusViT, "base", "linear", 87.4),
        (DefocusRetNet, "base", "linear", 94.1),
        (DefocusMamba, "small", "linear", 25.1),
        (DefocusMamba, "base", "linear", 92.65),
        (DefocusMamba, "large", "mlp", 330.12),
    ],
)
def test_published_parameter_counts(family, arch, head, millions):
    with torch.device("meta"):
        model = DefocusClassifier(family(arch), 1000, head)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_loss_is_the_mean_of_both_heads():
    model = DefocusClassifier(DefocusMamba(TINY), 5)
    images, target = torch.randn(3, 3, 40, 32), torch.tensor([0, 4, 2])
    tokens = model.forward_features(images)
    assert tokens.shape == (3, 3 * 2 + 1, 64)
    by_class_token, by_mean = model.head(tokens[:, -1]), model.head2(tokens[:, :-1].mean(1))
    expected = (F.cross_entropy(by_class_token, target) + F.cross_entropy(by_mean, target)) / 2
    loss = model.loss(images, target)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    torch.testing.assert_close(model(images), by_class_token)


def test_a_trained_classifier_becomes_a_backbone(tmp_path):
    model = DefocusClassifier(DefocusViT(dict(embed_dims=32, depth=2, num_heads=2)), 5)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "cls.pth")
    backbone = DefocusViT(dict(embed_dims=32, depth=2, num_heads=2))
    report = load_pretrained(backbone, tmp_path / "cls.pth")
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in backbone.state_dict().items())
    assert sorted(report.left) == ["head.bias", "head.weight", "head2.bias", "head2.weight"]


def test_drop_path_rises_over_training_and_over_depth():
    model = DefocusClassifier(DefocusMamba(TINY), 5)
    schedule = DropPathSchedule(model, 0.1, 0.7, total_steps=4)
    found = []
    for epoch in range(5):
        schedule.step(epoch)
        found.append([round(block.drop_path.drop_prob, 6) for block in model.backbone.blocks])
    assert found == [[0, 0.05, 0.1], [0, 0.15, 0.3], [0, 0.25, 0.5], [0, 0.35, 0.7], [0, 0.35, 0.7]]


def test_bad_arguments():
    with pytest.raises(ValueError, match="'linear' or 'mlp', got 'big'"):
        DefocusClassifier(DefocusMamba(TINY), 5, head="big")
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1"):
        DropPathSchedule(DefocusMamba(TINY), 0.1, 1.0, 10)
    with pytest.raises(ValueError, match="Linear holds no De-focus backbone"):
        set_drop_path_rate(torch.nn.Linear(1, 1), 0.1)
