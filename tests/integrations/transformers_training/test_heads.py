"""Heads on a backbone: what they learn, what they are told, and what is refused."""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones.integrations.transformers_training import heads
from tests.integrations.transformers_training.tiny import BACKBONE, DEFORMABLE, MASK2FORMER, REAL_TIME

OPTIONS = {
    "rt_detr_v2": REAL_TIME,
    "d_fine": REAL_TIME,
    "deimv2": REAL_TIME,
    "deformable_detr": DEFORMABLE,
    "detr": {name: value for name, value in DEFORMABLE.items() if name != "num_feature_levels"},
    "mask2former": MASK2FORMER,
    "upernet": {"hidden_size": 16, "auxiliary_channels": 16},
}


@pytest.mark.parametrize("head", heads.HEADS)
def test_a_head_learns_from_its_data_and_all_of_it_gets_gradients(head):
    task = heads.find_task(head, semantic=head == "upernet")
    adapter = BACKBONE["adapter"]
    if head in ("mask2former", "upernet"):
        adapter = adapter | {"num_outs": 4, "start_level": 1}
    elif head == "detr":
        # It takes the last map alone.
        adapter = adapter | {"num_outs": 1}
    model = heads.build_model(head, task, BACKBONE | {"adapter": adapter}, OPTIONS[head], ["a", "b"]).train()
    assert model.config.id2label == {0: "a", 1: "b"}
    images = torch.randn(2, 3, 64, 64)
    if task == "boxes":
        boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
        labels = {"labels": [{"class_labels": torch.tensor([label]), "boxes": boxes} for label in (0, 1)]}
    elif task == "masks":
        mask = torch.zeros(1, 64, 64)
        mask[:, 8:40, 8:40] = 1
        labels = {"mask_labels": [mask, mask], "class_labels": [torch.tensor([0]), torch.tensor([1])]}
    else:
        labels = {"labels": torch.randint(0, 2, (2, 64, 64))}
    loss = model(pixel_values=images, **labels).loss
    assert torch.isfinite(loss)
    loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # RT-DETR and its kin look up the class of a noised object, DETR and Mask2Former do not use some of their own.
    assert not {name for name in without if "backbone" in name or "encoder.defocus" in name}, without


@pytest.mark.parametrize("head", ["rt_detr_v2", "d_fine", "deimv2"])
def test_a_new_head_starts_at_scales_from_which_it_learns(head):
    model = heads.build_model(head, "boxes", BACKBONE, REAL_TIME, ["a"])
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)
    # A linear layer of 32 inputs starts between -1 / sqrt(32) and 1 / sqrt(32) in PyTorch.
    weights = [layer.self_attn.q_proj.weight for layer in model.model.decoder.layers]
    assert torch.stack(weights).std().item() == pytest.approx(torch.nn.Linear(32, 32).weight.std().item(), rel=0.2)


def test_the_lite_encoder_takes_one_map_and_nothing_of_it_lies_idle():
    options = REAL_TIME | {"encoder_type": "lite"}
    one = BACKBONE | {"adapter": BACKBONE["adapter"] | {"num_outs": 1}}
    model = heads.build_model("deimv2", "boxes", one, options, ["a", "b"]).train()
    # Of patches of 8, and the one that it makes.
    assert list(model.config.feat_strides) == [8, 16]
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}] * 2
    model(pixel_values=torch.randn(2, 3, 64, 64), labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with pytest.raises(ValueError, match="the backbone gives 3: ask its adapter for one"):
        heads.build_model("deimv2", "boxes", BACKBONE, options, ["a"])


@pytest.mark.parametrize(
    ("head", "semantic", "message"),
    [
        ("detr", True, "the head detr does not learn from folders of label maps; mask2former, upernet do"),
        ("upernet", False, "does not learn from a COCO file of objects; rt_detr_v2, d_fine"),
        ("faster_rcnn", False, "there is no head 'faster_rcnn'; name one of rt_detr_v2"),
    ],
)
def test_a_head_for_other_data_is_refused(head, semantic, message):
    with pytest.raises(ValueError, match=message):
        heads.find_task(head, semantic)


def test_mask2former_learns_instances_or_classes():
    assert (heads.find_task("mask2former", False), heads.find_task("mask2former", True)) == ("masks", "semantic")


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ({}, {}, "the backbone has no model_type"),
        (BACKBONE, {"num_query": 3}, "the head detr has no option num_query; DetrConfig of transformers"),
    ],
)
def test_options_of_nothing_are_refused(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        heads.build_model("detr", "boxes", backbone, options, ["a"])


def test_a_size_that_the_head_cannot_double_is_refused():
    model = heads.build_model("rt_detr_v2", "boxes", BACKBONE, REAL_TIME, ["a"])
    heads.check_size("rt_detr_v2", model, (64, 96))
    with pytest.raises(ValueError, match="multiples of 32, got 64×80"):
        heads.check_size("rt_detr_v2", model, (64, 80))


def test_a_checkpoint_needs_a_backbone_of_ours():
    model = transformers.AutoBackbone.from_config(transformers.ResNetConfig(hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="of which ResNetBackbone has 0"):
        heads.load_backbone(model, "backbone.pth")
