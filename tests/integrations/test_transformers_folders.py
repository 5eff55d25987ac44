"""Weights of every framework to folders of transformers and back, bit for bit; pipelines on such folders."""

import json

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones import AdaptedBackbone, DefocusMamba, InteractionAdapter, SimpleFPN, TapPyramid
from backbones.checkpoints import (
    CheckpointError,
    load_pretrained,
    read_checkpoint,
    to_classifier,
    to_detectron2,
    to_mmdet,
)
from backbones.classifier import CLASSIFIERS as PLAIN_CLASSIFIERS
from backbones.defocus import FAMILIES
from backbones.integrations.transformers import BACKBONES, CLASSIFIERS, CONFIGS
from backbones.integrations.transformers.folders import model_of_weights, write_folder
from backbones.integrations.transformers.processing import image_processor
from tests.test_families import TINY
from tests.testing import assert_same_bits
from tests.tools.test_convert_checkpoint import convert

ARCH = TINY["DefocusMamba"] | {"depth": 4}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def random_(module):
    """The module with no value at which it started."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    return module.eval()


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_classifier_there_and_back(family, head, tmp_path):
    plain = random_(PLAIN_CLASSIFIERS[family](TINY[family], num_classes=5, head=head, rope_scale=4.0, delta_scale=2.0))
    torch.save({"model_ema": plain.state_dict(), "model": {}}, tmp_path / "release.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    words = ["--to", "transformers", "--labels", tmp_path / "names.txt", "--set", "rope_scale=4.0", "delta_scale=2.0"]
    result = convert(tmp_path / "release.pth", tmp_path / "folder", *words)
    assert result.returncode == 0, result.stderr
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "folder")
    images = torch.randn(2, 3, 40, 50)
    with torch.no_grad():
        assert torch.equal(model(images).logits, plain(images))
    assert model.config.id2label[4] == "elk" and model.config.label2id["ant"] == 0
    result = convert(tmp_path / "folder", tmp_path / "back.safetensors", "--to", "timm")
    assert result.returncode == 0 and "left out" not in result.stdout
    assert_same_bits(read_checkpoint(tmp_path / "back.safetensors"), plain.state_dict())


def test_what_is_in_no_file_is_there(family):
    """Filters that a network does without are constants of no checkpoint."""
    plain = random_(FAMILIES[family](TINY[family], decay="none", phase="fixed"))
    model = model_of_weights(plain.state_dict(), dict(family=family, arch=TINY[family], decay="none", phase="fixed"))
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(model(image).feature_maps[0], plain(image)[0])


def test_timm_reads_a_folders_weights(tmp_path):
    timm = pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    import backbones.integrations.timm  # noqa: F401  registers

    model = random_(CLASSIFIERS["DefocusViT"](CONFIGS["DefocusViT"](arch=TINY["DefocusViT"], num_labels=5)))
    model.save_pretrained(tmp_path)
    path = str(tmp_path / "model.safetensors")
    other = timm.create_model("defocus_vit_small", arch=TINY["DefocusViT"], num_classes=5, checkpoint_path=path).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(images), model(images).logits)


ADAPTERS = {
    "SimpleFPN": (SimpleFPN, dict(out_channels=8, num_outs=3, start_level=1), (-1,)),
    "TapPyramid": (TapPyramid, dict(out_channels=8), (0, 1, 2, 3)),
    "TapPyramid without convolutions": (TapPyramid, dict(num_outs=3, start_level=1), (0, 1, 3)),
    "InteractionAdapter": (
        InteractionAdapter,
        dict(num_groups=2, prior_dims=16, num_heads=8, num_outs=3, start_level=1),
        (1, 3),
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapted_backbone_there_and_back(name, tmp_path):
    kind, arguments, blocks = ADAPTERS[name]
    net = DefocusMamba(ARCH, out_indices=blocks, section_size=32)
    plain = random_(AdaptedBackbone(net, kind.fit(net, **arguments)))
    weights = {f"backbone.{n}": v for n, v in plain.state_dict().items()} | {"head.bias": torch.zeros(2)}
    if kind is SimpleFPN:
        weights = {n.replace("backbone.adapter.", "neck.").replace(".net.", "."): v for n, v in weights.items()}
    # What weights do not tell.
    settings = dict(section_size=32, adapter={})
    if kind is not SimpleFPN:
        settings["adapter"] = dict(out_indices=list(blocks))
    if kind is InteractionAdapter:
        settings["adapter"]["num_heads"] = 8
    model = model_of_weights(weights, settings)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for found, expected in zip(model(image).feature_maps, plain(image), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    write_folder(model, image_processor(None), tmp_path / "folder")
    read = read_checkpoint(tmp_path / "folder")
    back, left = to_mmdet(read)
    assert left == []
    assert_same_bits(back, {n: v for n, v in weights.items() if n != "head.bias"})
    # The same through Detectron2's names.
    there, left = to_detectron2(read)
    assert left == [] and (kind is not SimpleFPN or any("simfp_" in n for n in there))
    assert_same_bits(model_of_weights(there, settings).state_dict(), model.state_dict())
    load_pretrained(other := DefocusMamba(ARCH), tmp_path / "folder")
    assert_same_bits(other.state_dict(), net.state_dict())


def test_the_config_of_a_stock_tool_says_the_rest(tmp_path):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    net = DefocusMamba(ARCH, out_indices=(1, 3))
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in net.state_dict().items()}}, tmp_path / "iter_1.pth")
    (tmp_path / "config.py").write_text(
        "model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[51, 51, 51]), backbone=dict(type='DefocusMamba', "
        f"arch={ARCH}, out_indices=(1, 3), section_size=32, rope_scale=20.0, delta_scale=4.57, drop_path_rate=0.4))"
    )
    result = convert(
        tmp_path / "iter_1.pth", tmp_path / "out", "--to", "transformers", "--config", tmp_path / "config.py"
    )
    assert result.returncode == 0 and "DefocusMambaBackbone" in result.stdout, result.stderr
    model = BACKBONES["DefocusMamba"].from_pretrained(tmp_path / "out")
    assert (model.out_features, model.config.section_size) == (["stage2", "stage4"], 32)
    assert (model.config.rope_scale, model.config.drop_path_rate) == (20.0, 0.0)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_std == pytest.approx([0.2] * 3) and not processor.do_resize


def test_what_cannot_be_converted_is_said(tmp_path):
    weights = DefocusMamba(ARCH).state_dict()
    with pytest.raises(ValueError, match=r"DefocusMambaConfig has no section; known are .*section_size"):
        model_of_weights(weights, dict(section=32))
    with pytest.raises(CheckpointError, match=r"blocks\.3.*choose the model, its arch"):
        model_of_weights(weights, dict(arch=ARCH | {"depth": 3}))
    fixed = {n: v for n, v in weights.items() if not n.endswith("A_log")}
    with pytest.raises(CheckpointError, match="say it as family, one of DefocusMamba"):
        model_of_weights(fixed)
    with pytest.raises(CheckpointError, match="no heads of a classifier"):
        to_classifier(weights)
    (tmp_path / "there").mkdir()
    torch.save(weights, tmp_path / "a.pth")
    result = convert(tmp_path / "a.pth", tmp_path / "there", "--to", "transformers")
    assert result.returncode == 1 and "exists: choose another name" in result.stderr
    with pytest.raises(CheckpointError, match=r"folder without a model\.safetensors"):
        read_checkpoint(tmp_path / "there")
    result = convert(tmp_path / "a.pth", tmp_path / "new", "--to", "transformers", "--set", "section_size=33")
    assert result.returncode == 1 and "multiples of patch_size=16" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "there"]


def test_weights_in_several_files_are_read(tmp_path):
    model = BACKBONES["DefocusMamba"](CONFIGS["DefocusMamba"](arch=ARCH))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_bits(read_checkpoint(tmp_path), model.state_dict())
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    (tmp_path / files["net.cls_token"]).unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="does not say which files"):
        read_checkpoint(tmp_path)


def picture():
    from PIL import Image

    return Image.frombytes("RGB", (50, 40), bytes(range(250)) * 24)


def test_a_pipeline_runs_on_a_classifiers_folder(tmp_path):
    """On an image that the folder's processor resizes and cuts; without a network."""
    config = CONFIGS["DefocusMamba"](arch=TINY["DefocusMamba"], id2label={0: "ant", 1: "bee", 2: "cat"}, image_size=32)
    model = random_(CLASSIFIERS["DefocusMamba"](config))
    model.save_pretrained(tmp_path)
    found = transformers.pipeline("image-classification", str(tmp_path))(picture())
    # Bicubic to a shorter side of 35, the middle 32, ImageNet's mean and deviation.
    image = torch.nn.functional.interpolate(pixels(picture())[None], (35, 43), mode="bicubic", antialias=True)
    image = image.clamp(0, 255)[:, :, 1:33, 5:37]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    with torch.no_grad():
        chances = model((image - mean[:, None, None]) / std[:, None, None]).logits[0].softmax(-1)
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
        dict(zip(("ant", "bee", "cat"), chances.tolist())), abs=0.01
    )


def pixels(image):
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def test_a_pipeline_runs_on_a_detectors_folder(tmp_path):
    backbone = CONFIGS["DefocusMamba"](arch=TINY["DefocusMamba"])
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=4)
    config = transformers.DetrConfig(backbone_config=backbone, id2label={0: "ring"}, label2id={"ring": 0}, **sizes)
    detector = transformers.DetrForObjectDetection(config)
    detector.save_pretrained(tmp_path)
    transformers.DetrImageProcessor(size={"height": 48, "width": 64}).save_pretrained(tmp_path)
    found = transformers.pipeline("object-detection", str(tmp_path), threshold=0.0)(picture())
    assert {entry["label"] for entry in found} <= {"ring"} and found
    # Its backbone, for any other framework.
    load_pretrained(plain := DefocusMamba(TINY["DefocusMamba"]), tmp_path)
    assert_same_bits(plain.state_dict(), detector.model.backbone.model.net.state_dict())
