"""DINO's wide reference head: its encoding, and where the original mmdet is given it."""

import math
import sys
from inspect import unwrap

import pytest
import torch

from backbones.integrations.reference_head import ReferenceHead, widen_reference_heads
from tests.testing import assert_close


def encode(boxes, channels):
    """Sines and cosines by turns of 2π·x / 10000^(2i / channels), for y, x, w, h."""
    rates = 10000 ** (torch.arange(channels).div(2, rounding_mode="floor") * 2 / channels)
    angles = 2 * math.pi * boxes[..., [1, 0, 2, 3], None] / rates
    return torch.where(torch.arange(channels) % 2 == 0, angles.sin(), angles.cos()).flatten(-2)


@pytest.mark.parametrize("dims", [64, 256])
def test_it_encodes_with_twice_the_frequencies(dims):
    boxes = torch.rand(2, 7, 4)
    boxes[0, 0] = torch.tensor([0.0, 1.0, 1.0, 0.5])  # the borders, whose sine and cosine agree at the first frequency
    head = ReferenceHead(dims)
    first, second = head.layers
    truth = second(first(encode(boxes, dims)).relu())
    assert_close(head(encode(boxes, 128)), truth, tolerance=1e-4)


CONFIG = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"


def build(**backbone):
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    config = Config.fromfile(CONFIG)
    config.merge_from_dict({"model.backbone": backbone, "model.neck": {"in_channels": 192}})
    init_default_scope("mmdet")
    return MODELS.build(config.model).eval()


def run(model):
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo=dict(img_shape=(64, 48), batch_input_shape=(64, 64)))]
    with torch.no_grad():
        scores, boxes = model(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), samples, mode="tensor")
    return scores, boxes


@pytest.fixture
def layers():
    return pytest.importorskip("mmdet.models.layers.transformer.dino_layers", reason="mmdet is not installed")


def as_in_3_3_0(patch, layers):
    """mmdet's DINO as that version has it: a head of half the channels, 128 of the encoding for each coordinate."""
    from mmdet.models.detectors import dino

    encode_any = layers.coordinate_to_encoding

    def make_layers(decoder):
        super(layers.DinoTransformerDecoder, decoder)._init_layers()
        dims = decoder.embed_dims
        decoder.ref_point_head = layers.MLP(dims * 2, dims, dims, 2)
        decoder.norm = torch.nn.LayerNorm(dims)

    patch.setattr(dino.DINO, "_init_layers", unwrap(dino.DINO._init_layers))
    patch.setattr(layers.DinoTransformerDecoder, "_init_layers", make_layers)
    patch.setattr(layers, "coordinate_to_encoding", lambda boxes, num_feats=None: encode_any(boxes, 128))


def test_with_mmdet_3_3_0_a_detector_of_ours_is_that_of_onedls(layers, monkeypatch):
    import mmdet

    if tuple(map(int, mmdet.__version__.split(".")[:2])) < (3, 5):
        pytest.skip(f"mmdet {mmdet.__version__} is the original one, and has no head of that width")
    with monkeypatch.context() as patch:
        as_in_3_3_0(patch, layers)
        model = build()
        for number, value in enumerate(model.decoder.parameters()):
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(number))
        found = run(model)
    assert isinstance(model.decoder.ref_point_head, ReferenceHead)
    stock = build()
    assert not isinstance(stock.decoder.ref_point_head, ReferenceHead)
    stock.load_state_dict(model.state_dict())
    for ours, truth in zip(found, run(stock), strict=True):
        assert_close(ours, truth, tolerance=1e-4)


def test_other_detectors_keep_their_head(layers, monkeypatch):
    as_in_3_3_0(monkeypatch, layers)
    build()  # From here on DINO is changed.
    other = dict(_delete_=True, type="ResNet", depth=18, out_indices=(3,))
    model = build(**other)
    assert type(model.decoder.ref_point_head) is layers.MLP


def test_where_mmdet_is_not_imported_nothing_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmdet.models.detectors.dino", raising=False)
    widen_reference_heads()
    assert "mmdet.models.detectors.dino" not in sys.modules
