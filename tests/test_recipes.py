"""What each config of mmdet and mmseg trains with, read from the built optimizer, against its recipe written out."""

import logging
import re
from dataclasses import dataclass, replace

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")
pytest.importorskip("mmseg", reason="mmseg is not installed")

from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS

import backbones
from tests.configs import MMDET_CONFIGS, MMSEG_CONFIGS, build


@dataclass(frozen=True)
class Recipe:
    """How a config trains.

    Attributes:
        lr: Of the heads.
        decay: Of all that decays.
        drop_path: Of the last block.
        steps: Where the rate falls to a tenth, or the last step of a schedule that falls all the time.
        warm_up: Iterations in which the rate rises.
        power: With which it falls where it falls all the time.
        rate: Factor on the rate from a block to the one below; None for `slow` instead.
        slow: What is in the names of parameters that learn at a tenth of `lr`.
        fast: The same at ten times.
        vectors: Whether biases and norms decay.
        constants: What is in the names of embeddings that do not.
        clip: Largest norm of the gradients.
        with_cp: Whether blocks are recomputed in backward.
        hooks: Names of custom hooks, at least.
    """

    lr: float
    decay: float
    drop_path: float
    steps: tuple[int, ...]
    warm_up: int = 0
    power: float = 1.0
    rate: float | None = None
    slow: tuple[str, ...] = ()
    fast: tuple[str, ...] = ()
    vectors: bool = False
    constants: tuple[str, ...] = ()
    clip: float | None = None
    with_cp: bool = True
    hooks: tuple[str, ...] = ("CheckAnnotationsHook",)


BOTH_HOOKS = ("CheckAnnotationsHook", "DeformableAttentionHook")
QUERIES = ("query_embed", "query_feat", "level_embed")
# The published one, arXiv 2406.04342.
DINO = Recipe(
    lr=2e-4, decay=1e-4, drop_path=0.5, steps=(11,), vectors=True, clip=0.1, hooks=BOTH_HOOKS,
    slow=("backbone.", "sampling_offsets", "reference_points"),
)  # fmt: skip
DINO_36 = replace(DINO, steps=(27, 33))
DINO_TINY = replace(
    DINO, lr=5e-4, drop_path=0.0, steps=(4,), warm_up=250, slow=("sampling_offsets",), with_cp=False
)  # fmt: skip
RCNN = Recipe(lr=1e-4, decay=0.05, drop_path=0.3, steps=(8, 11), warm_up=500, rate=0.9, clip=1.0)
RCNN_LSJ = replace(RCNN, steps=(27, 33), warm_up=1000)
RCNN_LARGE = replace(RCNN_LSJ, drop_path=0.5, rate=0.95)
MASK2FORMER = Recipe(
    lr=1e-4, decay=0.05, drop_path=0.3, steps=(327778, 355092), rate=0.9, clip=0.01, constants=QUERIES, hooks=BOTH_HOOKS
)
UPERNET = Recipe(lr=6e-5, decay=0.05, drop_path=0.4, steps=(160000,), warm_up=1500, rate=0.9, with_cp=False)
# 48 blocks of 1,024 channels.
LARGE = dict(drop_path=0.5, rate=0.95, with_cp=True)
# 12 blocks.
SHALLOW = dict(rate=0.8)
FROM_SCRATCH = dict(drop_path=0.0, warm_up=100, rate=1.0, with_cp=False)
RECIPES = {
    "cascade-mask-rcnn_defocus-mamba-base_8xb2-12e_coco": RCNN,
    "cascade-mask-rcnn_defocus-mamba-base_8xb2-lsj-36e_coco": RCNN_LSJ,
    "cascade-mask-rcnn_defocus-mamba-large_8xb2-lsj-36e_coco": RCNN_LARGE,
    "mask-rcnn_defocus-mamba-base_8xb2-12e_coco": RCNN,
    "mask-rcnn_defocus-mamba-base_8xb2-lsj-36e_coco": RCNN_LSJ,
    "mask-rcnn_defocus-mamba-large_8xb2-lsj-36e_coco": RCNN_LARGE,
    "mask-rcnn_defocus-mamba-tiny_1xb4-3e_shapes": replace(RCNN, **FROM_SCRATCH, lr=1e-3, steps=(3,), clip=5.0),
    "dino-4scale_defocus-mamba-base_8xb2-12e_coco": DINO,
    "dino-4scale_defocus-mamba-base_8xb2-36e_coco": DINO_36,
    "dino-4scale_defocus-mamba-large_8xb2-12e_coco": DINO,
    "dino-4scale_defocus-mamba-large_8xb2-36e_coco": DINO_36,
    "dino-4scale_defocus-retnet-base_8xb2-12e_coco": DINO,
    "dino-4scale_defocus-vit-base_8xb2-12e_coco": DINO,
    "dino-5scale_defocus-mamba-base_8xb2-12e_coco": DINO,
    "dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes": replace(DINO_TINY, lr=8e-4),
    "dino-4scale_defocus-retnet-tiny_1xb2-4e_shapes": DINO_TINY,
    "dino-4scale_defocus-vit-tiny_1xb2-4e_shapes": DINO_TINY,
    "dino-4scale_defocus-mamba-tiny_1xb2-1500it_any-coco-json": replace(DINO_TINY, steps=(1500,), warm_up=100),
    "mask2former_defocus-mamba-base_8xb2-lsj-50e_coco": MASK2FORMER,
    "mask2former_defocus-mamba-base_8xb2-lsj-50e_coco-panoptic": MASK2FORMER,
    "mask2former_defocus-mamba-large_8xb2-lsj-50e_coco": replace(MASK2FORMER, **LARGE),
    "mask2former_defocus-mamba-large_8xb2-lsj-50e_coco-panoptic": replace(MASK2FORMER, **LARGE),
    "upernet_defocus-mamba-base-fpn_8xb2-160k_ade20k-512x512": UPERNET,
    "upernet_defocus-mamba-base-interaction_8xb2-160k_ade20k-512x512": UPERNET,
    "upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512": UPERNET,
    "upernet_defocus-mamba-small-interaction_8xb2-160k_ade20k-512x512": replace(UPERNET, drop_path=0.2),
    "upernet_defocus-mamba-small-tap_8xb2-160k_ade20k-512x512": replace(UPERNET, drop_path=0.2),
    "upernet_defocus-mamba-large-interaction_8xb2-160k_ade20k-640x640": replace(UPERNET, **LARGE),
    "upernet_defocus-mamba-large-tap_8xb2-160k_ade20k-640x640": replace(UPERNET, **LARGE),
    "upernet_defocus-retnet-base-tap_8xb2-160k_ade20k-512x512": replace(UPERNET, **SHALLOW),
    "upernet_defocus-vit-base-tap_8xb2-160k_ade20k-512x512": replace(UPERNET, **SHALLOW),
    "upernet_defocus-mamba-base-interaction_4xb2-80k_cityscapes-512x1024": replace(UPERNET, steps=(80000,)),
    "upernet_defocus-mamba-base-tap_4xb2-80k_cityscapes-512x1024": replace(UPERNET, steps=(80000,)),
    "upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes": replace(
        UPERNET, **FROM_SCRATCH, lr=8e-4, steps=(3600,), clip=1.0
    ),
    "segformer_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512": replace(UPERNET, fast=("decode_head.",)),
    "segformer_defocus-mamba-small-tap_8xb2-160k_ade20k-512x512": replace(
        UPERNET, fast=("decode_head.",), drop_path=0.2
    ),
    **{
        f"mask2former_defocus-mamba-{kind}": replace(
            MASK2FORMER, steps=(160000,), power=0.9, drop_path=0.4, with_cp=False
        )
        for kind in (
            "base-interaction_8xb2-160k_ade20k-512x512",
            "base-tap_8xb2-160k_ade20k-512x512",
        )
    },
    "mask2former_defocus-mamba-large-tap_8xb2-160k_ade20k-640x640": replace(
        MASK2FORMER, steps=(160000,), power=0.9, **LARGE
    ),
}
# The scan's own, and those of the heads' filters.
CONSTANTS = ("A_log", "D", "freq", "log_rate")
DEPTHS = dict(tiny=6, small=24, base=24, large=48)


def expected_settings(name: str, ndim: int, recipe: Recipe, depth: int) -> tuple[float, float]:
    """Rate and decay of a parameter."""
    net = re.match(r"backbone\.(?!adapter\.)(?:net\.)?(.*)", name)
    lr, decay = recipe.lr, recipe.decay
    lr *= 0.1 if any(part in name for part in recipe.slow) else 1
    lr *= 10 if any(part in name for part in recipe.fast) else 1
    if net and recipe.rate is not None:
        block = re.match(r"blocks\.(\d+)\.", net[1])
        above = depth - int(block[1]) if block else (0 if net[1].startswith("norm.") else depth + 1)
        lr *= recipe.rate**above
    if net and net[1].rpartition(".")[2] in CONSTANTS:
        decay = 0.0
    if not recipe.vectors and (ndim == 1 or (net and net[1] == "cls_token")):
        decay = 0.0
    if any(part in name for part in recipe.constants):
        decay = 0.0
    return lr, decay


@pytest.fixture(autouse=True)
def silence():
    """mmengine prints three lines a parameter."""
    MMLogger.get_current_instance().setLevel(logging.ERROR)


@pytest.mark.parametrize("path", MMDET_CONFIGS + MMSEG_CONFIGS, ids=lambda p: p.stem)
def test_recipe(path):
    assert path.stem in RECIPES, "write out in RECIPES what it is to train with"
    recipe = RECIPES[path.stem]
    config, model = build(path)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert type(wrapper.optimizer).__name__ == "AdamW"
    held = {id(p): (g["lr"], g["weight_decay"]) for g in wrapper.optimizer.param_groups for p in g["params"]}
    (net,) = (module for module in model.modules() if isinstance(module, backbones.defocus.DefocusBackbone))
    size = next(size for size in DEPTHS if f"-{size}" in path.stem)
    depth = 12 if size == "base" and "mamba" not in path.stem else DEPTHS[size]
    assert len(net.blocks) == depth
    found, expected = {}, {}
    for name, parameter in model.named_parameters():
        found[name] = held.pop(id(parameter))
        expected[name] = pytest.approx(expected_settings(name, parameter.ndim, recipe, depth))
    assert found == expected and not held

    assert (wrapper.clip_grad_kwargs or {}).get("max_norm") == recipe.clip
    assert net.with_cp == recipe.with_cp
    assert (net.blocks[0].drop_path.drop_prob, net.blocks[-1].drop_path.drop_prob) == (0, recipe.drop_path)
    hooks = [HOOKS.build(hook) for hook in config.custom_hooks]
    # Others may come beside these, such as those of the demos.
    assert set(recipe.hooks) <= {type(hook).__name__ for hook in hooks}
    schedule = config.param_scheduler
    *warm_up, fall = schedule if isinstance(schedule, list) else [schedule]
    assert tuple(fall.get("milestones", (fall.end,))) == recipe.steps
    assert [(part.type, part.end) for part in warm_up] == ([("LinearLR", recipe.warm_up)] if recipe.warm_up else [])
    # By epochs the rise lies over the fall.
    begin = 0 if fall.get("by_epoch", True) else recipe.warm_up
    assert fall.type != "PolyLR" or (fall.begin, fall.power) == (begin, recipe.power)


def test_no_recipe_without_a_config():
    assert set(RECIPES) == {path.stem for path in MMDET_CONFIGS + MMSEG_CONFIGS}
