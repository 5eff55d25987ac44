"""Networks from checkpoints, configs and names: the right class, the right weights, and what is refused."""

import pytest
import torch

from backbones.checkpoints import CheckpointError
from backbones.classifier import CLASSIFIERS
from backbones.defocus import FAMILIES
from backbones.integrations.networks import MEAN, backbone_of_config, load_network
from tests.test_families import TINY
from tests.testing import assert_same_bits

SHAPES = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("before", ["backbone.", "backbone.net.", "module.backbone.", ""])
def test_the_file_tells_the_backbone_of_a_detector(tmp_path, family, before):
    truth = FAMILIES[family](TINY[family], patch_size=8)
    weights = {before + name: value for name, value in truth.state_dict().items()}
    others = {"neck.weight": torch.zeros(3)} if before else {}
    torch.save({"state_dict": weights | others}, tmp_path / "det.pth")
    loaded = load_network(tmp_path / "det.pth", settings=dict(section_size=32, rope_scale=3.0))
    assert type(loaded.model) is FAMILIES[family] and loaded.trained and not loaded.model.training
    assert (loaded.model.patch_size, loaded.model.section) == (8, (4, 4))
    assert loaded.model.blocks[0].mixer.rope_scale == 3.0 and loaded.mean == MEAN and loaded.size is None
    assert_same_bits(loaded.model.state_dict(), truth.state_dict())


@pytest.mark.parametrize("head, before", [("linear", ""), ("mlp", "module."), ("linear", "_orig_mod.")])
def test_a_classifier_keeps_its_heads(tmp_path, family, head, before):
    truth = CLASSIFIERS[family](TINY[family], num_classes=7, head=head)
    torch.save({"model": {before + name: value for name, value in truth.state_dict().items()}}, tmp_path / "cls.pth")
    model = load_network(tmp_path / "cls.pth").model
    assert type(model) is CLASSIFIERS[family] and model.num_classes == 7
    assert_same_bits(model.state_dict(), truth.state_dict())
    image = torch.randn(1, 3, 40, 40)
    assert torch.equal(model(image), truth.eval()(image))


def test_a_network_without_decay_is_named(tmp_path):
    truth = FAMILIES["DefocusViT"](TINY["DefocusViT"], decay="none", causal=False)
    torch.save(truth.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"does not tell the family of its backbone: name it by --model"):
        load_network(tmp_path / "plain.pth")
    settings = dict(arch=TINY["DefocusViT"], decay="none", causal=False)
    model = load_network(tmp_path / "plain.pth", "DefocusViT", settings=settings).model
    assert_same_bits(model.state_dict(), truth.state_dict())
    assert model.blocks[0].mixer.causal is False


def test_names_without_a_checkpoint_are_random_and_the_same_each_time():
    first, second = (load_network(model="DefocusViT", settings=dict(arch=TINY["DefocusViT"])) for _ in range(2))
    assert not first.trained and first.about == "DefocusViT, random weights"
    assert_same_bits(first.model.state_dict(), second.model.state_dict())
    named = load_network(model="defocus_vit_small", settings=dict(arch=TINY["DefocusViT"], num_classes=3)).model
    assert type(named) is CLASSIFIERS["DefocusViT"] and named.num_classes == 3


def test_the_backbone_of_a_config(tmp_path):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    family, arguments, mean, std = backbone_of_config(SHAPES)
    assert family == "DefocusMamba" and mean == (127.5,) * 3 and std == (60.0,) * 3
    assert arguments == dict(
        arch=dict(embed_dims=192, inner_dims=384, depth=6, dt_rank=12), patch_size=8, section_size=None,
        rope_scale=1.0, delta_scale=1.0,
    )  # fmt: skip
    arch = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)
    truth = FAMILIES[family](arch, patch_size=8)
    torch.save({f"backbone.{name}": value for name, value in truth.state_dict().items()}, tmp_path / "det.pth")
    loaded = load_network(tmp_path / "det.pth", config=SHAPES, settings=dict(arch=arch))
    assert_same_bits(loaded.model.state_dict(), truth.state_dict())
    assert loaded.mean == (127.5,) * 3
    with pytest.raises(CheckpointError, match="does not fit DefocusMamba"):
        load_network(tmp_path / "det.pth", config=SHAPES)


def test_the_net_of_an_adapted_backbone(tmp_path):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    config = tmp_path / "config.py"
    config.write_text(
        "model = dict(backbone=dict(type='AdaptedBackbone', adapter=dict(type='TapPyramid'), net=dict("
        "type='mmseg.DefocusViT', arch='small', section_size=64, drop_path_rate=0.3, with_cp=True)))\n"
    )
    family, arguments, mean, _ = backbone_of_config(str(config))
    assert (family, arguments, mean) == ("DefocusViT", dict(arch="small", section_size=64), MEAN)
    config.write_text("model = dict(backbone=dict(type='ResNet', depth=50))\n")
    with pytest.raises(ValueError, match=r"the backbone of .* is ResNet, none of DefocusMamba, DefocusViT"):
        backbone_of_config(str(config))


def test_a_model_of_timm(tmp_path):
    timm = pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    sizes = dict(embed_dim=48, depth=1, num_heads=3, num_classes=4)
    truth = timm.create_model("vit_tiny_patch16_224", img_size=(48, 48), **sizes)
    torch.save(truth.state_dict(), tmp_path / "vit.pth")
    loaded = load_network(tmp_path / "vit.pth", "vit_tiny_patch16_224", settings=sizes, size=(48, 48))
    assert_same_bits(loaded.model.state_dict(), truth.state_dict())
    # This ViT was trained on -1 to 1.
    assert loaded.size == (48, 48) and loaded.trained and loaded.mean == loaded.std == (127.5,) * 3
    larger = load_network(tmp_path / "vit.pth", "vit_tiny_patch16_224", settings=sizes, size=(64, 64)).model
    assert larger.pos_embed.shape == (1, 17, 48) and torch.equal(larger.head.weight, truth.head.weight)
    with pytest.raises(CheckpointError, match=r"vit\.pth does not fit timm's resnet10t"):
        load_network(tmp_path / "vit.pth", "resnet10t")
    fixed = load_network(model="vit_tiny_patch16_224", settings=sizes)
    assert fixed.size == (224, 224) and fixed.about == "vit_tiny_patch16_224, random weights"
    assert load_network(model="resnet10t").size is None


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing says what the network is"):
        load_network()
    with pytest.raises(ValueError, match="--model and --config both name the network"):
        load_network(model="DefocusViT", config=SHAPES)
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: there is no De-focus backbone"):
        load_network(tmp_path / "other.pth")
    torch.save(FAMILIES["DefocusViT"](TINY["DefocusViT"]).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="It holds a DefocusViT"):
        load_network(tmp_path / "vit.pth", "DefocusMamba", settings=dict(arch=TINY["DefocusMamba"]))


def test_a_name_that_timm_does_not_know():
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    with pytest.raises(ValueError, match="there is no model 'resnet5000': give one of DefocusMamba"):
        load_network(model="resnet5000")
