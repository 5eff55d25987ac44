"""The classifier: released layout, two heads, rising drop path."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F

from backbones import DefocusMamba, DefocusViT
from backbones.checkpoints import load_pretrained
from backbones.classifier import CLASSIFIERS, DefocusMambaClassifier
from backbones.defocus import FAMILIES
from backbones.drop_path_schedule import DropPathSchedule, set_drop_path_rate

TINY = dict(embed_dims=64, inner_dims=128, depth=3, dt_rank=4)
TINY_ARCHS = {
    "DefocusMamba": TINY,
    "DefocusViT": dict(embed_dims=64, depth=2, num_heads=2),
    "DefocusRetNet": dict(embed_dims=64, depth=2, num_heads=2, value_dims=64, ffn_dims=48),
}


@pytest.mark.parametrize(
    "size, classes, head", [("base", 1000, "linear"), ("large_1k", 1000, "mlp"), ("large_21k", 21841, "mlp")]
)
def test_released_classifiers_load_strictly(size, classes, head):
    with open(f"tests/data/classifier_keys_{size}.json") as file:
        released = {name: tuple(shape) for name, shape in json.load(file).items()}
    with torch.device("meta"):
        model = DefocusMambaClassifier(size.split("_")[0], num_classes=classes, head=head)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == released
    weights = {name: torch.empty(shape, device="meta") for name, shape in released.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    assert set(weights) == set(released)


@pytest.mark.parametrize(
    "family, arch, head, millions",
    [
        ("DefocusViT", "small", "linear", 22.4),
        ("DefocusViT", "base", "linear", 87.4),
        ("DefocusRetNet", "base", "linear", 94.1),
        ("DefocusMamba", "small", "linear", 25.1),
        ("DefocusMamba", "base", "linear", 92.65),
        ("DefocusMamba", "large", "mlp", 330.12),
    ],
)
def test_published_parameter_counts(family, arch, head, millions):
    with torch.device("meta"):
        model = CLASSIFIERS[family](arch, head=head)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_loss_is_the_mean_of_both_heads():
    model = DefocusMambaClassifier(TINY, num_classes=5)
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


def test_without_auxiliary_loss_the_class_token_alone_counts():
    model = DefocusMambaClassifier(TINY, num_classes=5, auxiliary_loss=False)
    images, target = torch.randn(3, 3, 40, 32), torch.tensor([0, 4, 2])
    loss = model.loss(images, target)
    logits = model.head(model.forward_features(images)[:, -1])
    assert torch.allclose(loss, F.cross_entropy(logits, target))
    loss.backward()
    # Those without a gradient are not trainable, for DistributedDataParallel waits for them.
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"head2.weight", "head2.bias"}
    assert not any(p.requires_grad for p in model.head2.parameters())
    assert model.state_dict().keys() == DefocusMambaClassifier(TINY, num_classes=5).state_dict().keys()
    model.reset_classifier(7)
    assert not model.head2.weight.requires_grad and model.head.weight.requires_grad


def test_the_head_of_the_large_models():
    """Linear, Tanh, Linear with three times the width in between, on the class token and on the mean of the others."""
    model = DefocusMambaClassifier(TINY, num_classes=5, head="mlp").double()
    images = torch.randn(3, 3, 40, 32, dtype=torch.float64)
    tokens = model.forward_features(images)
    logits = model.forward_heads(tokens)
    for head, features, found in zip(("head", "head2"), (tokens[:, 6], tokens[:, :6].sum(1) / 6), logits):
        first, last = (getattr(model, head)[i] for i in (0, 2))
        assert first.weight.shape == (192, 64) and last.weight.shape == (5, 192)
        hidden = features @ first.weight.T + first.bias
        hidden = (hidden.exp() - (-hidden).exp()) / (hidden.exp() + (-hidden).exp())
        torch.testing.assert_close(found, hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(model(images), logits[0])


def test_a_trained_classifier_becomes_a_backbone(tmp_path):
    model = CLASSIFIERS["DefocusViT"](dict(embed_dims=32, depth=2, num_heads=2), num_classes=5)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "cls.pth")
    backbone = DefocusViT(dict(embed_dims=32, depth=2, num_heads=2))
    report = load_pretrained(backbone, tmp_path / "cls.pth")
    for k, v in backbone.state_dict().items():
        assert torch.equal(v, model.state_dict()[k.replace("projection", "proj")])
    assert sorted(report.left) == ["head.bias", "head.weight", "head2.bias", "head2.weight"]


def test_drop_path_rises_over_training_and_over_depth():
    model = DefocusMambaClassifier(TINY, num_classes=5)
    schedule = DropPathSchedule(model, 0.1, 0.7, total_steps=4)
    found = []
    for epoch in range(5):
        schedule.step(epoch)
        found.append([round(block.drop_path.drop_prob, 6) for block in model.blocks])
    assert found == [[0, 0.05, 0.1], [0, 0.15, 0.3], [0, 0.25, 0.5], [0, 0.35, 0.7], [0, 0.35, 0.7]]


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_final_norms_eps(family):
    """1e-6 in the released classifiers, 1e-5 in the released detectors; it counts where a token hardly varies."""
    arch = TINY_ARCHS[family]
    classifier = CLASSIFIERS[family](arch, num_classes=0)
    backbone = FAMILIES[family](arch)
    backbone.load_state_dict(
        {k.replace("proj.", "projection.") if "patch" in k else k: v for k, v in classifier.state_dict().items()}
    )
    token = torch.linspace(-1, 1, 64, dtype=torch.float64).mul(1e-3).expand(1, 5, 64)
    for model, eps in ((classifier, 1e-6), (backbone, 1e-5)):
        model = model.double()
        expected = token / (token.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        model.blocks = torch.nn.ModuleList([torch.nn.Identity()])
        (out,) = model.run_to(token, [0])
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_names_are_those_of_the_parameters(family):
    model = CLASSIFIERS[family](TINY_ARCHS[family], num_classes=3)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    image = torch.randn(1, 3, 32, 32)
    changed = {name: p + 1 if name == "cls_token" else p for name, p in model.named_parameters()}
    assert not torch.equal(torch.func.functional_call(model, changed, image), model(image))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model) and torch.equal(copied(image), model(image))


def test_bad_arguments():
    with pytest.raises(ValueError, match="a classifier has no maps, and so no out_indices"):
        DefocusMambaClassifier(TINY, out_indices=(0,))
    with pytest.raises(ValueError, match="'linear' or 'mlp', got 'big'"):
        DefocusMambaClassifier(TINY, head="big")
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1"):
        DropPathSchedule(DefocusMamba(TINY), 0.1, 1.0, 10)
    with pytest.raises(ValueError, match="Linear holds no De-focus backbone"):
        set_drop_path_rate(torch.nn.Linear(1, 1), 0.1)
