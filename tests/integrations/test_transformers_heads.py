"""transformers' own detection and segmentation heads, unchanged, on our backbones."""

import os

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones.integrations.transformers import BACKBONES, CONFIGS
from tests.test_families import TINY
from tests.testing import assert_same_bits

PYRAMID = dict(type="SimpleFPN", out_channels=32, num_outs=3, start_level=1)
FOUR = dict(type="SimpleFPN", out_channels=16)
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
# Those that `ALL_HEADS=1` tests besides: relatives of the others.
RELATIVES = ("ConditionalDetr", "DabDetr", "RTDetr", "Deimv2", "MaskFormer")
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


def chosen(heads):
    return [head for head in heads if head not in RELATIVES or os.environ.get("ALL_HEADS")]


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


def unreached(model):
    """Parameters of the backbone without a gradient; the class token, which comes last, is in no map."""
    (backbone,) = (m for m in model.modules() if isinstance(m, tuple(BACKBONES.values())))
    return [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]


def saved(model, folder):
    """The model after it was saved and loaded, bit for bit."""
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert_same_bits(again.state_dict(), model.state_dict())
    return again


def assert_equal(*pairs):
    """Outputs of the same weights at another place in memory, which convolutions may read in another order."""
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", chosen(HEADS))
def test_a_detector_learns_predicts_and_is_saved(head, tmp_path):
    model = detector(head).train()
    images, mask, labels = two_sizes()
    loss = model(images, pixel_mask=mask, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert unreached(model) == ["net.cls_token"]
    with torch.no_grad():
        before, after = (m(images, pixel_mask=mask) for m in (model.eval(), saved(model, tmp_path)))
    assert_equal((after.logits, before.logits), (after.pred_boxes, before.pred_boxes))
    assert before.logits.shape[:2] == (2, 8) and before.pred_boxes.isfinite().all()


# Head to the sizes of a small one.
SEGMENTORS = {
    "Mask2Former": MASK,
    "MaskFormer": dict(
        fpn_feature_size=32, mask_feature_size=32, decoder_config=dict(model_type="detr", d_model=32, **DETR)
    ),
}


def segmentor(head, task, **sizes):
    backbone = CONFIGS["DefocusMamba"](arch=TINY["DefocusMamba"], adapter=FOUR)
    config = getattr(transformers, f"{head}Config")(backbone_config=backbone, num_labels=3, **sizes)
    return getattr(transformers, f"{head}For{task}")(config)


@pytest.mark.parametrize("head", chosen(SEGMENTORS))
def test_a_mask_classifier_learns_predicts_and_is_saved(head, tmp_path):
    model = segmentor(
        head, "UniversalSegmentation" if head == "Mask2Former" else "InstanceSegmentation", **SEGMENTORS[head]
    )
    images, mask, _ = two_sizes()
    masks = [torch.zeros(2, 96, 128), torch.zeros(1, 96, 128)]
    for shapes in masks:
        shapes[0, 8:40, 16:60] = 1
    masks[0][1, 50:90, 10:70] = 1
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    loss = model.train()(images, pixel_mask=mask, mask_labels=masks, class_labels=labels).loss
    loss.sum().backward()
    assert loss.isfinite().all() and unreached(model) == ["net.cls_token"]
    before, after = model.eval()(images, pixel_mask=mask), saved(model, tmp_path)(images, pixel_mask=mask)
    assert_equal(
        (after.masks_queries_logits, before.masks_queries_logits),
        (after.class_queries_logits, before.class_queries_logits),
    )
    processor = getattr(transformers, f"{head}ImageProcessor")()
    sizes = [(96, 80), (64, 128)]
    semantic = processor.post_process_semantic_segmentation(after, target_sizes=sizes)
    assert [tuple(m.shape) for m in semantic] == sizes
    instances = processor.post_process_instance_segmentation(after, threshold=0.0, target_sizes=sizes)
    assert all(len(result["segments_info"]) for result in instances)
    panoptic = processor.post_process_panoptic_segmentation(after, target_sizes=sizes)
    assert [tuple(result["segmentation"].shape) for result in panoptic] == sizes


def test_upernet_learns_predicts_and_is_saved(tmp_path):
    model = segmentor(
        "UperNet", "SemanticSegmentation", hidden_size=16, auxiliary_channels=16, auxiliary_in_channels=16
    )
    images, _, _ = two_sizes()
    labels = torch.randint(0, 3, (2, 96, 128))
    loss = model.train()(images, labels=labels).loss
    loss.backward()
    assert loss.isfinite() and unreached(model) == ["net.cls_token"]
    before, after = model.eval()(images).logits, saved(model, tmp_path)(images).logits
    assert_equal((after, before))
    assert before.shape == (2, 3, 96, 128)
