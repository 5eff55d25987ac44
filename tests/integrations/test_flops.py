"""Configs of every framework: FLOPs equal those of a second, independent count, and all that was not counted is known.

One config of each kind of model; `ALL_CONFIGS=1 python -m pytest tests/integrations/test_flops.py` takes every one.
"""

import os
from pathlib import Path

import pytest
import torch

from backbones.flops import FlopCounter, shapes_only
from backbones.flops.measure import GROUPS
from backbones.flops.table import entries
from backbones.integrations.flops import find_subject, kind_of
from tests.detectron2_checkouts import detrex_root
from tests.flops.second_count import product_of_masks, second_count

ENTRIES = {entry.name: entry for entry in entries()}
FOUR_BLOCKS = "{'_delete_': True, 'embed_dims': 768, 'inner_dims': 1536, 'depth': 4}"
# One config of each kind, by the end of its name; large backbones with fewer blocks.
KINDS = {
    "dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py": (),
    "mask-rcnn_defocus-mamba-tiny_1xb4-3e_shapes.py": (),
    "cascade-mask-rcnn_defocus-mamba-base_8xb2-12e_coco.py": (f"model.backbone.arch={FOUR_BLOCKS}",),
    "upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py": (),
    "mask2former_defocus-mamba-base-interaction_8xb2-160k_ade20k-512x512.py": (
        f"model.backbone.net.arch={FOUR_BLOCKS}",
        "model.backbone.net.out_indices=[1, 3]",
    ),
    "mask_rcnn_defocus_mamba_tiny.py": (),
    "faster_rcnn_defocus_mamba_tiny.yaml": (),
    "COCO/cascade_mask_rcnn_defocus_mamba_base_100ep.py": (),
    "dino_defocus_mamba_base_4scale_12ep.py": (),
    "deeplab_v3_plus_defocus_mamba_base_3x.py": (),
    "panoptic_fpn_defocus_mamba_base_3x.py": (),
    "defocus_vit_small": (),
    "deit_small_patch16_224": (),
}
if os.environ.get("ALL_CONFIGS"):
    CHOSEN = dict.fromkeys(ENTRIES, ())
else:
    CHOSEN = {name: options for name in ENTRIES for end, options in KINDS.items() if name.endswith(end)}
# What no formula is for: searches, samplings and poolings.
KNOWN = {
    "aten._adaptive_avg_pool2d",
    "aten.avg_pool2d",
    "aten.max_pool2d_with_indices",
    "aten.nonzero",
    "aten.sort",
    "aten.topk",
    "aten.upsample_bilinear2d",
    "aten.upsample_nearest2d",
    "mmcv.nms",
    "mmcv.roi_align_forward",
    "torchvision.batched_nms",
    "torchvision.roi_align",
}
MMCV, TORCHVISION = ({n for n in KNOWN if n.startswith(f"{package}.")} for package in ("mmcv", "torchvision"))
PACKAGES = dict(openmmlab=("mmengine", "mmcv", "mmdet"), detectron2=("detectron2",), timm=("timm",))


@pytest.mark.filterwarnings("ignore:.*data pointer of FakeTensor")
@pytest.mark.parametrize("name", CHOSEN, ids=lambda name: Path(name).stem)
def test_two_counts_agree(name):
    entry = ENTRIES[name]
    for package in (*PACKAGES[kind_of(name)], *(["mmseg"] if entry.part == "mmseg_configs" else [])):
        oldest = "1.0.3" if package == "timm" else None
        pytest.importorskip(package, minversion=oldest, reason=f"{package} {oldest or ''} is not installed")
    if "detectron2_projects/dino" in name:
        detrex_root()
    with shapes_only():
        subject = find_subject(name, entry.size, (*entry.options, *CHOSEN[name]))()
        counter = FlopCounter(subject.model)
        with torch.no_grad(), second_count(subject.model) as second, counter, subject.functions(counter):
            out = subject.run()
        if "mmseg_configs/mask2former" in name:
            second.total += product_of_masks(out, subject.model.decode_head.num_queries)
    assert second.without_rule == set()
    assert counter.counts.flops == second.total > 0
    assert counter.counts.within("backbone") > 0 or entry.part == "classification"
    unknown = set(counter.counts.uncounted) - set(GROUPS)
    assert unknown <= KNOWN
    if "rcnn" in name:
        mine = unknown & (MMCV if entry.part == "mmdet_configs" else TORCHVISION)
        assert len(mine) == 2


def test_a_config_counts_the_same_on_shapes_as_on_a_real_image():
    """Weights and an image in memory, every operation computed by the definition: the same number."""
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    name = next(name for name in ENTRIES if name.endswith("upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"))
    build = find_subject(name, (64, 48))
    totals = []
    for on_shapes in (True, False):
        with shapes_only() if on_shapes else pytest.MonkeyPatch.context() as patch:
            if not on_shapes:
                patch.setenv("DEFOCUS_SCAN_BACKEND", "reference")
            subject = build()
            counter = FlopCounter(subject.model)
            with torch.no_grad(), counter:
                subject.run()
            totals.append(counter.counts.flops)
    assert counter.counts.backends["mamba_inner"] == "reference"
    assert totals[0] == totals[1]


@pytest.mark.parametrize(
    "text, kind",
    [
        ("_base_ = './x.py'\nmodel = dict()\n", "openmmlab"),
        ("from .x import model\nmodel.a = 1\n", "detectron2"),
        ("from mmengine.config import read_base\nwith read_base():\n    from .x import *\n", "openmmlab"),
        ("import detectron2.data.transforms as T\n", "detectron2"),
    ],
)
def test_configs_are_told_apart_by_what_they_say(text, kind, tmp_path):
    (tmp_path / "config.py").write_text(text)
    assert kind_of(str(tmp_path / "config.py")) == kind
    assert kind_of("mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py") == "openmmlab" and kind_of("resnet50") == "timm"


def test_settings_of_the_command_line_reach_the_model():
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    with shapes_only():
        assert len(find_subject("defocus_vit_small", (32, 32), ["num_classes=7"])().run()[0]) == 7
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    name = next(name for name in ENTRIES if "upernet_defocus-mamba-tiny" in name)
    options = ["model.decode_head.num_classes=3", "model.backbone.net.patch_size=8"]
    with shapes_only():
        model = find_subject(name, (32, 32), options)().model
    assert model.decode_head.num_classes == 3 and model.backbone.net.patch_size == 8
