"""transformers' own detection and segmentation heads, unchanged, on our backbones."""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones.integrations.transformers import BACKBONES, CONFIGS
from tests.test_families import TINY

PYRAMID = dict(type="SimpleFPN", out_channels=32, num_outs=3, start_level=1)
FOUR = dict(type="TapPyramid", out_channels=32)
DETR = dict(
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    num_queries=8,
)
RT = DETR | dict(
    encoder_hidden_dim=32,
    encoder_in_channels=[32] * 3,
    decoder_in_channels=[32] * 3,
    hidden_expansion=0.5,
    num_denoising=4,
    decoder_n_points=2,
    d_model=32,
    num_queries=8,
)
MASK = dict(
    feature_size=32,
    mask_feature_size=32,
    hidden_dim=32,
    encoder_feedforward_dim=32,
    dim_feedforward=32,
    encoder_layers=1,
    decoder_layers=3,
    num_attention_heads=2,
    num_queries=8,
    train_num_points=64,
)
# Head to adapter of its backbone and the sizes of a small one.
HEADS = {
    "Detr": (None, DETR | dict(d_model=32)),
    "ConditionalDetr": (None, DETR | dict(d_model=32)),
    "DabDetr": (None, DETR | dict(hidden_size=32)),
    "DeformableDetr": (PYRAMID, DETR | dict(d_model=32, num_feature_levels=4, encoder_n_points=2, decoder_n_points=2)),
    "RTDetr": (PYRAMID, RT),
    "RTDetrV2": (PYRAMID, RT),
    "DFine": (PYRAMID, RT),
    "Deimv2": (PYRAMID, RT),
}


def detector(head, family="DefocusMamba", adapter=None, **settings):
    default, sizes = HEADS[head]
    backbone = CONFIGS[family](arch=TINY[family], adapter=adapter or default)
    config = getattr(transformers, f"{head}Config")(backbone_config=backbone, num_labels=3, **sizes, **settings)
    return getattr(transformers, f"{head}ForObjectDetection")(config)


def two_sizes():
    """Two images of different sizes in one batch, and what is on them."""
    images, mask = torch.zeros(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.long)
    for i, (height, width) in enumerate(((96, 80), (64, 128))):
        images[i, :, :height, :width] = torch.randn(3, height, width)
        mask[i, :height, :width] = 1
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.2]])
    labels = [
        dict(class_labels=torch.tensor([0, 2]), boxes=boxes),
        dict(class_labels=torch.tensor([1]), boxes=boxes[:1]),
    ]
    return images, mask, labels


@pytest.mark.parametrize("head", HEADS)
def test_a_detector_learns_predicts_and_is_saved(head, tmp_path):
    model = detector(head).train()
    images, mask, labels = two_sizes()
    loss = model(images, pixel_mask=mask, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    # The class token comes last in the sequence: the maps do not see it.
    backbone = (m for m in model.modules() if isinstance(m, BACKBONES["DefocusMamba"]))
    zero = [n for n, p in next(backbone).named_parameters() if p.grad is None or not p.grad.any()]
    assert zero == ["net.cls_token"]
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        before, after = (m(images, pixel_mask=mask) for m in (model, again))
    assert torch.equal(before.logits, after.logits) and torch.equal(before.pred_boxes, after.pred_boxes)
    assert before.logits.shape[:2] == (2, 8) and before.pred_boxes.isfinite().all()
