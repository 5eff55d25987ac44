"""Configs, backbones, models and classifiers by transformers' contracts."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
)

from backbones.adapters import AdaptedBackbone, SimpleFPN
from backbones.classifier import CLASSIFIERS as PLAIN_CLASSIFIERS
from backbones.defocus import FAMILIES
from backbones.integrations.transformers import BACKBONES, CLASSIFIERS, CONFIGS, MODELS
from tests.test_families import TINY
from tests.testing import assert_same_bits

PYRAMID = dict(type="SimpleFPN", out_channels=8, num_outs=3, start_level=1)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def config(family, **changes):
    return CONFIGS[family](**{"arch": TINY[family], **changes})


def test_a_config_is_plain_json(family, tmp_path):
    settings = dict(section_size=[32, 48], rope_scale=20.0, delta_scale=4.57, adapter=PYRAMID, decay="fixed")
    settings |= dict(out_features=["stride8", "stride32"], num_channels=4, drop_path_rate=0.1, num_labels=7)
    before = config(family, **settings)
    before.save_pretrained(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path)
    assert type(after) is CONFIGS[family] and after.to_diff_dict() == before.to_diff_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "defocus_" + family.removeprefix("Defocus").lower()
    assert written["adapter"] == PYRAMID and written["arch"] == TINY[family] and written["section_size"] == [32, 48]
    assert (after.out_indices, after.hidden_size, after.num_hidden_layers) == ([0, 2], TINY[family]["embed_dims"], 2)


def test_a_config_says_what_is_wrong(family):
    with pytest.raises(ValueError, match="no arch 'huge'"):
        CONFIGS[family](arch="huge")
    with pytest.raises(ValueError, match="adapter must have a type, one of SimpleFPN"):
        config(family, adapter=dict(type="FPN"))
    with pytest.raises(ValueError, match="out_features must be a subset"):
        config(family, out_features=["stage3"])


def test_a_backbone_gives_what_the_plain_one_gives(family):
    settings = dict(section_size=32, rope_scale=2.0, delta_scale=1.5)
    plain = FAMILIES[family](TINY[family], out_indices=(0, 1), **settings).eval()
    model = AutoBackbone.from_config(config(family, out_indices=[0, 1, 2], **settings)).eval()
    assert type(model) is BACKBONES[family] and model.channels == [plain.embed_dims] * 3
    model.net.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 40, 50)
    with torch.no_grad():
        out, maps = model(image, output_hidden_states=True), plain(image)
        sequence, grid = plain.tokenize(image)
    for found, expected in zip(out.feature_maps, (grid.to_map(sequence), *maps), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(out.hidden_states[0], sequence) and len(out.hidden_states) == 3
    assert torch.equal(grid.to_map(out.hidden_states[1]), maps[0])
    assert torch.equal(model(image, return_dict=False)[0][2], maps[1]) and model(image).hidden_states is None


@pytest.mark.parametrize(
    ("adapter", "strides"),
    [
        (PYRAMID, [8, 16, 32]),
        (dict(type="TapPyramid", out_channels=8, out_indices=[0, 1, 2, -1]), [4, 8, 16, 32]),
        (dict(type="TapPyramid", start_level=1, num_outs=3), [8, 16, 32]),
        (dict(type="InteractionAdapter", num_heads=4, start_level=1, num_outs=3), [8, 16, 32]),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_an_adapter_gives_its_strides(adapter, strides):
    model = BACKBONES["DefocusMamba"](config("DefocusMamba", arch=TINY["DefocusMamba"] | {"depth": 4}, adapter=adapter))
    assert model.stage_names == model.out_features == [f"stride{stride}" for stride in strides]
    maps = model(torch.randn(1, 3, 64, 96)).feature_maps
    width = adapter.get("out_channels", 64)
    assert [m.shape[1:] for m in maps] == [(width, 64 // s, 96 // s) for s in strides]
    assert model.channels == [width] * len(strides)
    sum(m.square().sum() for m in maps).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.out_features = [f"stride{strides[-1]}"]
    assert len(model(torch.randn(1, 3, 64, 96)).feature_maps) == len(model.channels) == 1


def test_an_adapted_backbone_is_the_plain_one(family):
    net = FAMILIES[family](TINY[family])
    plain = AdaptedBackbone(net, SimpleFPN.fit(net, **{k: v for k, v in PYRAMID.items() if k != "type"}))
    model = BACKBONES[family](config(family, adapter=PYRAMID))
    model.load_state_dict(plain.state_dict())
    assert model.no_weight_decay() == plain.no_weight_decay()
    names = list(plain.state_dict())
    assert [model.get_layer_id(n) for n in names] == [plain.get_layer_id(n) for n in names]
    image = torch.randn(1, 3, 64, 64)
    for found, expected in zip(model(image).feature_maps, plain(image), strict=True):
        assert torch.equal(found, expected)


def test_a_classifier_is_the_plain_one(family):
    plain = PLAIN_CLASSIFIERS[family](TINY[family], num_classes=5)
    model = AutoModelForImageClassification.from_config(config(family, num_labels=5))
    assert type(model) is CLASSIFIERS[family]
    weights = {n.replace("patch_embed.proj.", "patch_embed.projection."): v for n, v in plain.state_dict().items()}
    model.load_state_dict({n if n.startswith("head") else f"defocus.net.{n}": v for n, v in weights.items()})
    images, classes = torch.randn(2, 3, 40, 50), torch.tensor([1, 4])
    out = model(images, labels=classes, output_hidden_states=True)
    assert torch.equal(out.logits, plain(images)) and torch.equal(out.loss, plain.loss(images, classes))
    assert len(out.hidden_states) == 3 and torch.equal(model(images).logits, out.logits)
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    tokens = model.defocus(images)
    assert torch.equal(tokens.last_hidden_state, plain.forward_features(images))
    assert torch.equal(tokens.pooler_output, tokens.last_hidden_state[:, -1])


def test_without_auxiliary_loss_one_head_learns(family, tmp_path):
    plain = CLASSIFIERS[family](config(family, num_labels=5, auxiliary_loss=False, head="mlp"))
    plain.save_pretrained(tmp_path)
    model = CLASSIFIERS[family].from_pretrained(tmp_path)
    images, classes = torch.randn(2, 3, 16, 32), torch.tensor([1, 4])
    out = model(images, labels=classes)
    assert torch.equal(out.loss, torch.nn.functional.cross_entropy(out.logits, classes))
    assert {n.partition(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"head2"}


def test_a_folder_serves_every_class(family, tmp_path):
    classifier = CLASSIFIERS[family](config(family, num_labels=5)).eval()
    classifier.save_pretrained(tmp_path)
    weights = classifier.state_dict()
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_same_bits(again.state_dict(), weights)
    net = {n.removeprefix("defocus."): v for n, v in weights.items() if n.startswith("defocus.")}
    assert_same_bits(AutoModel.from_pretrained(tmp_path).state_dict(), net)
    # What `AutoBackbone.from_pretrained` would find, if it did not ask the Hub for the folder.
    kind = MODEL_FOR_BACKBONE_MAPPING[type(AutoConfig.from_pretrained(tmp_path))]
    assert kind is BACKBONES[family]
    assert_same_bits(kind.from_pretrained(tmp_path).state_dict(), net)
    adapted = BACKBONES[family].from_pretrained(tmp_path, adapter=PYRAMID)
    assert adapted.out_features == ["stride8", "stride16", "stride32"]
    assert_same_bits({n: v for n, v in adapted.state_dict().items() if n.startswith("net.")}, net)
    half = MODELS[family].from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(torch.randn(1, 3, 32, 32)).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("filters", ["learned", "fixed", "none"])
def test_what_no_file_fills_has_its_initial_values(family, filters, tmp_path):
    """Weights are made on no device and then filled; what a file lacks must not be what was in the memory."""
    settings = dict(decay=filters, phase=filters, num_labels=3)
    torch.manual_seed(1)
    (model := CLASSIFIERS[family](config(family, **settings))).save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    kept = {n: v for n, v in load_file(tmp_path / "model.safetensors").items() if "norm" in n}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = CLASSIFIERS[family].from_pretrained(tmp_path)
    buffers = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    for (name, found), expected in zip(again.named_parameters(), model.parameters()):
        # Drawn anew, from the same distribution; what is not drawn is the same.
        spread = expected.std() if expected.numel() > 1 else 0
        assert found.isfinite().all() and (found.mean() - expected.mean()).abs() <= 0.2 * spread + 0.02, name
        assert (found.numel() < 64 and found.numel() > 1) or abs(found.std() - spread) <= 0.2 * spread + 1e-6, name


def test_what_does_not_run_is_not_trained(family, tmp_path):
    CLASSIFIERS[family](config(family)).save_pretrained(tmp_path)
    model = BACKBONES[family].from_pretrained(tmp_path, out_features=["stem", "stage1"], frozen_stages=0).train()
    sum(m.sum() for m in model(torch.randn(1, 3, 32, 32)).feature_maps).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[1] for n in without} == {"patch_embed", "cls_token", "blocks", "norm"}
    assert {n.split(".")[2] for n in without if ".blocks." in n} == {"1"}


def test_checkpointing_gives_the_same_gradients(family):
    model, images = BACKBONES[family](config(family, adapter=PYRAMID)).train(), torch.randn(1, 3, 32, 32)
    runs, gradients = [], []
    model.net.blocks[0].mixer.register_forward_pre_hook(lambda *_: runs.append(0))
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable(every_n_layers=2)
        model.zero_grad()
        sum(m.square().sum() for m in model(images).feature_maps).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert len(runs) == 3 and [block.gradient_checkpointing for block in model.net.blocks] == [True, False]
    assert_same_bits(*gradients)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
