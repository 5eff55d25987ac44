"""Each segmentation head on a tiny backbone, from our configs: loss, gradients, prediction, test-time augmentation."""

import copy

import pytest
import torch

pytest.importorskip("mmseg", reason="mmseg is not installed")
pytest.importorskip("mmdet", reason="mmdet is not installed")
import mmdet.models
import mmseg.models
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

CLASSES = 5
ARCHS = dict(
    DefocusMamba=dict(embed_dims=64, inner_dims=128, depth=4, dt_rank=4),
    DefocusViT=dict(embed_dims=64, depth=4, num_heads=4),
    DefocusRetNet=dict(embed_dims=64, depth=4, num_heads=4, value_dims=128, ffn_dims=96),
)
SEG = {
    path.split("_")[0] + "-" + "-".join(path.split("_")[1].split("-")[1:]): path
    for path in (
        "upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512",
        "upernet_defocus-mamba-base-fpn_8xb2-160k_ade20k-512x512",
        "upernet_defocus-mamba-base-interaction_8xb2-160k_ade20k-512x512",
        "upernet_defocus-vit-base-tap_8xb2-160k_ade20k-512x512",
        "upernet_defocus-retnet-base-tap_8xb2-160k_ade20k-512x512",
        "segformer_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512",
        "mask2former_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512",
    )
}
DET = (
    "mask_rcnn/mask-rcnn_defocus-mamba-base_8xb2-12e_coco",
    "cascade_rcnn/cascade-mask-rcnn_defocus-mamba-base_8xb2-12e_coco",
    "mask2former/mask2former_defocus-mamba-base_8xb2-lsj-50e_coco",
    "mask2former/mask2former_defocus-mamba-base_8xb2-lsj-50e_coco-panoptic",
)


def shrink_backbone(model):
    net = model.backbone.get("net", model.backbone)
    net.update(arch=ARCHS[net.type], drop_path_rate=0.0, section_size=64)
    if "adapter" in model.backbone:
        net.out_indices = (0, 1, 2, 3)
        if model.backbone.adapter.type == "InteractionAdapter":
            model.backbone.adapter.num_heads = 4
    else:
        model.neck.in_channels = 64


def shrink_mask2former(head):
    head.num_queries = 10
    head.transformer_decoder.num_layers = 2
    head.pixel_decoder.encoder.num_layers = 1


def segmentor(name, **changes):
    method = name.split("_")[0]
    config = Config.fromfile(f"mmseg_configs/{method}/{name}.py")
    init_default_scope("mmseg")
    model = config.model
    shrink_backbone(model)
    model.data_preprocessor.size = (64, 96)
    batch_norm = dict(type="BN", requires_grad=True)
    model.decode_head.num_classes = CLASSES
    if method == "mask2former":
        shrink_mask2former(model.decode_head)
        model.decode_head.loss_cls.class_weight = [1.0] * CLASSES + [0.1]
        model.decode_head.train_cfg.num_points = 256
    else:
        model.decode_head.update(norm_cfg=batch_norm, channels=32)
    if model.get("auxiliary_head"):
        model.auxiliary_head.update(norm_cfg=batch_norm, channels=32, num_classes=CLASSES)
    model.update(changes)
    return config, mmseg.registry.MODELS.build(model)


def seg_sample(height, width, labels=None, **meta):
    meta = {"img_shape": (height, width), "ori_shape": (height, width), "img_path": "x.jpg", **meta}
    sample = SegDataSample(metainfo=meta)
    if labels is None:
        labels = torch.randint(CLASSES, (1, height, width))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def seg_batch(sizes):
    return dict(
        inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes],
        data_samples=[seg_sample(*size) for size in sizes],
    )


def loss_and_gradients(model, batch):
    # Away from the initial values: gates and offsets that start at zero stop the gradients of what they read.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.train()
    batch = model.data_preprocessor(batch, True)
    losses = model(**batch, mode="loss")
    total, log = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    return log, {name: p.grad for name, p in model.named_parameters()}


def assert_all_learn(gradients):
    # The class token comes last in the sequence: no image token sees it.
    idle = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    assert {name for name in idle if not name.endswith("cls_token")} == set()


@pytest.mark.parametrize("name", SEG.values(), ids=SEG)
def test_segmentor_learns_and_predicts(name):
    _, model = segmentor(name)
    log, gradients = loss_and_gradients(model, seg_batch([(64, 96), (50, 77)]))
    assert any("loss" in key for key in log)
    assert_all_learn(gradients)

    model.eval()
    for size in ((61, 83), (17, 40)):
        with torch.no_grad():
            (out,) = model.test_step(seg_batch([size]))
        assert tuple(out.pred_sem_seg.data.shape) == (1, *size)
        assert tuple(out.seg_logits.data.shape) == (CLASSES, *size)
        assert torch.equal(out.pred_sem_seg.data[0], out.seg_logits.data.argmax(0))


@pytest.mark.parametrize("name", SEG.values(), ids=SEG)
def test_an_odd_image_is_padded_not_squeezed(name):
    # The maps of 61 rows reach to row 64: resized to 61, all that is found would lie too high.
    _, model = segmentor(name)
    model.eval()
    batch = seg_batch([(61, 83)])
    pixels = (batch["inputs"][0].flip(0).float() - model.data_preprocessor.mean) / model.data_preprocessor.std
    padded = torch.nn.functional.pad(pixels, (0, 96 - 83, 0, 64 - 61))[None]
    with torch.no_grad():
        (out,) = model.test_step(batch)
        expected = model.encode_decode(padded, [dict(img_shape=(64, 96), ori_shape=(64, 96))])
    torch.testing.assert_close(out.seg_logits.data, expected[0, :, :61, :83])


def test_sliding_window_of_one_window_is_the_whole_image():
    _, model = segmentor(SEG["upernet-mamba-base-tap"])
    model.eval()
    batch = seg_batch([(64, 96)])
    with torch.no_grad():
        (whole,) = model.test_step(copy.deepcopy(batch))
        model.test_cfg = Config(dict(mode="slide", crop_size=(64, 96), stride=(32, 32)))
        (slid,) = model.test_step(copy.deepcopy(batch))
        torch.testing.assert_close(slid.seg_logits.data, whole.seg_logits.data)
        # Windows overlap on an image of no multiple of the stride.
        (odd,) = model.test_step(seg_batch([(101, 130)]))
    assert tuple(odd.pred_sem_seg.data.shape) == (1, 101, 130) and odd.seg_logits.data.isfinite().all()


@pytest.mark.parametrize("name", [SEG["upernet-mamba-base-tap"], SEG["mask2former-mamba-base-tap"]])
def test_multi_scale_and_flipped_test_time_augmentation(name):
    config, model = segmentor(name)
    wrapper = mmseg.registry.MODELS.build(dict(config.tta_model, module=model)).eval()
    height, width = 40, 60
    views, truth = [], torch.randint(CLASSES, (1, height, width))
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    for scale in (0.5, 1.0, 1.75):
        for flip in (False, True):
            size = (round(height * scale), round(width * scale))
            view = torch.nn.functional.interpolate(image[None].float(), size)[0].byte()
            sample = seg_sample(
                height, width, truth, img_shape=size, flip=flip, flip_direction="horizontal" if flip else None
            )
            views.append((view.flip(-1) if flip else view, sample))
    batch = dict(inputs=[[view] for view, _ in views], data_samples=[[sample] for _, sample in views])
    with torch.no_grad():
        (merged,) = wrapper.test_step(copy.deepcopy(batch))
        probabilities = torch.zeros(CLASSES, height, width)
        for view, sample in views:
            (out,) = model.test_step(dict(inputs=[view], data_samples=[copy.deepcopy(sample)]))
            probabilities += out.seg_logits.data.softmax(0)
    assert torch.equal(merged.pred_sem_seg.data[0], probabilities.argmax(0))


def detector(path):
    config = Config.fromfile(f"mmdet_configs/{path}.py")
    init_default_scope("mmdet")
    model = config.model
    shrink_backbone(model)
    model.data_preprocessor.batch_augments = None
    if model.type == "Mask2Former":
        shrink_mask2former(model.panoptic_head)
        model.train_cfg.num_points = 256
    else:
        # All anchors, those beyond the border too: a sample of them may leave the coarse scales out.
        model.train_cfg.rpn.sampler.num = 10000
        model.train_cfg.rpn.allowed_border = -1
        model.train_cfg.rpn_proposal.max_per_img = 50
        model.test_cfg.rpn.max_per_img = 20
    return mmdet.registry.MODELS.build(model)


def det_batch(sizes, panoptic):
    samples = []
    for height, width in sizes:
        sample = DetDataSample(
            metainfo=dict(img_shape=(height, width), ori_shape=(height, width), batch_input_shape=(height, width),
                          scale_factor=(1.0, 1.0), img_id=1)
        )  # fmt: skip
        boxes = torch.tensor([[4.0, 4, 40, 36], [20, 10, 50, 48]])
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = 1
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.tensor([0, 3]), masks=BitmapMasks(masks.numpy(), height, width)
        )
        if panoptic:
            # Things 0 and 3 on stuff 80.
            labels = torch.full((1, height, width), 80)
            for label, mask in zip((0, 3), masks):
                labels[0][mask.bool()] = label
            sample.gt_sem_seg = PixelData(sem_seg=labels)
        samples.append(sample)
    return dict(inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes], data_samples=samples)


@pytest.mark.parametrize("path", DET, ids=lambda p: p.split("/")[1])
def test_detector_learns_and_predicts_masks(path):
    model = detector(path)
    panoptic = path.endswith("panoptic")
    log, gradients = loss_and_gradients(model, det_batch([(64, 96), (60, 75)], panoptic))
    assert any("mask" in key for key in log)
    assert_all_learn(gradients)

    model.eval()
    with torch.no_grad():
        (out,) = model.test_step(det_batch([(61, 83)], panoptic))
    assert tuple(out.pred_instances.masks.shape[1:]) == (61, 83)
    assert len(out.pred_instances.masks) == len(out.pred_instances.scores)
    if panoptic:
        assert tuple(out.pred_panoptic_seg.sem_seg.shape[-2:]) == (61, 83)
