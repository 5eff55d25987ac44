"""What each framework's own tool has trained, given to every other framework's backbone, is the same function."""

import sys

import pytest
import torch
from torch import nn

from backbones import DefocusMamba
from backbones.checkpoints import load_pretrained
from defocus_commands.shapes.data_set import make_shapes
from tests.testing import assert_close, load_tool
from tests.trained_models import EVERY_BLOCK, IMAGE, SOURCES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that trains a model of `SOURCES` when it is first asked for."""
    shapes = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(shapes, train=4, val=2, size=96, seed=0)
    known = {}

    def train(name):
        if name not in known:
            torch.manual_seed(0)
            known[name] = SOURCES[name](name, shapes, tmp_path_factory.mktemp("work"))
        return known[name]

    return train


@pytest.fixture
def convert(monkeypatch, tmp_path):
    """Runs `tools/convert_checkpoint.py` on a file with flags; gives the file that it wrote."""

    def run(file, *flags):
        words = ["convert_checkpoint.py", file, tmp_path / "converted.pth", *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        load_tool("convert_checkpoint").main()
        return tmp_path / "converted.pth"

    return run


# Each gives the backbone that was loaded, and its maps of `IMAGE` by the framework's own call.


def load_in_pytorch(trained, convert):
    net = DefocusMamba(out_indices=EVERY_BLOCK, **trained.settings)
    load_pretrained(net, trained.file)
    return net, lambda: net(IMAGE)


def load_converted_in_pytorch(trained, convert):
    net = DefocusMamba(out_indices=EVERY_BLOCK, **trained.settings)
    net.load_state_dict(torch.load(convert(trained.file))["state_dict"])
    return net, lambda: net(IMAGE)


def load_in_mmengine(trained, convert):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from mmengine.registry import MODELS

    init_cfg = dict(type="Pretrained", checkpoint=str(trained.file))
    net = MODELS.build(dict(type="DefocusMamba", out_indices=EVERY_BLOCK, init_cfg=init_cfg, **trained.settings))
    net.init_weights()
    return net, lambda: net(IMAGE)


def load_converted_in_mmengine(trained, convert):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from mmengine.registry import MODELS
    from mmengine.runner import load_checkpoint

    file = convert(trained.file, "--to", "mmdet")
    net = MODELS.build(dict(type="DefocusMamba", out_indices=EVERY_BLOCK, **trained.settings))
    load_checkpoint(nn.ModuleDict({"backbone": net}), str(file), "cpu")
    return net, lambda: net(IMAGE)


def load_in_detectron2(trained, convert):
    pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")
    return _detectron2_pyramid(trained, f"defocus:{trained.file}")


def load_converted_in_detectron2(trained, convert):
    pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")
    return _detectron2_pyramid(trained, str(convert(trained.file, "--to", "detectron2")))


def _detectron2_pyramid(trained, file):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import SimpleFeaturePyramid

    from backbones.integrations import detectron2

    net = detectron2.DefocusMamba(out_indices=EVERY_BLOCK, **trained.settings)
    pyramid = SimpleFeaturePyramid(net, "block3", out_channels=32, scale_factors=(1.0,), norm="LN")
    DetectionCheckpointer(nn.ModuleDict({"backbone": pyramid})).load(file)
    return net, lambda: tuple(net(IMAGE).values())


def load_in_timm(trained, convert):
    timm = pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    # timm takes the weights in a file by its own keys, which detrex' average is not among.
    file = convert(trained.file) if trained.last and trained.last[1] == "model" else trained.file
    settings = dict(num_classes=trained.classes, checkpoint_path=str(file), **trained.settings)
    net = timm.create_model("defocus_mamba_small", **settings)
    return net, lambda: net.forward_intermediates(IMAGE, EVERY_BLOCK, intermediates_only=True)


TARGETS = {
    "PyTorch": load_in_pytorch,
    "PyTorch, converted": load_converted_in_pytorch,
    "mmengine": load_in_mmengine,
    "mmengine, converted": load_converted_in_mmengine,
    "Detectron2": load_in_detectron2,
    "Detectron2, converted": load_converted_in_detectron2,
    "timm": load_in_timm,
}
PAIRS = [
    (source, target)
    for source in SOURCES
    for target in TARGETS
    # `--to mmdet` is for what has Detectron2's names.
    if target != "mmengine, converted" or source.startswith(("Detectron2", "detrex"))
]


@pytest.mark.parametrize("source, target", PAIRS, ids=[f"{source} to {target}" for source, target in PAIRS])
def test_maps_are_the_trained_ones(source, target, trained, convert):
    truth = trained(source)
    net, maps = TARGETS[target](truth, convert)
    # A classifier's final norm has another epsilon than a detector's, by design.
    net.norm.eps = truth.norm_eps
    net.eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(maps(), truth.maps, strict=True))


@pytest.mark.parametrize("source", [source for source in SOURCES if source.endswith("average")])
def test_the_average_is_the_one_by_hand(source, trained):
    truth = trained(source)
    weights, container = truth.last
    assert any(not torch.equal(weights[name], truth.weights[name]) for name in weights)
    for name, value in truth.average.items():
        assert_close(truth.weights[name].double(), value, name, 1e-6)
    net = DefocusMamba(**truth.settings)
    assert load_pretrained(net, truth.file).average
    assert all(torch.equal(value, truth.weights[name]) for name, value in net.state_dict().items())
    # The last step on request.
    assert not load_pretrained(net, truth.file, container).average
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
