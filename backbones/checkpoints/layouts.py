"""One detector's weights under two frameworks: mmdet's names to Detectron2's and back, as pure functions.

Carried are the backbone, the simple feature pyramid, and DINO between mmdet's and detrex's. Other heads have other
parts in either framework, and are left out by name.

| part     | mmdet                                      | Detectron2, detrex                              |
| -------- | ------------------------------------------ | ----------------------------------------------- |
| backbone | `backbone.*`, adapted `backbone.net.*`     | `backbone.net.*`                                |
| pyramid  | `neck.fpn1.*`, `neck.lateral_convs.0.*`, … | `backbone.simfp_2.*`, … or `backbone.adapter.*` |
| adapters | `backbone.adapter.*`                       | `backbone.adapter.*`                            |
| DINO     | `encoder.*`, `decoder.*`, `bbox_head.*`, … | `transformer.*`, `class_embed.*`, …             |

"Adapted" is our `AdaptedBackbone`, which either framework has. `SimpleFPN` is a neck under mmdet; under Detectron2 it
is that framework's own `SimpleFeaturePyramid` or the adapter of an `AdaptedBackbone`. The other adapters stand with
their backbone in both.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from backbones.checkpoints.convert import backbone_from_checkpoint, classifier_heads, find_backbones
from backbones.checkpoints.read import CheckpointError

# Layers before the two convolutions of each level, finest first: stride 4 has a norm and an activation between its two
# deconvolutions, stride 8 one deconvolution, the backbone's own nothing, and half of it a pooling.
_LAYERS_BEFORE = (4, 1, 0, 1)

# mmdet's name and detrex'; {} is a number, and a name that ends in a dot is the beginning of several.
_DINO = (
    ("level_embed", "transformer.level_embeds"),
    ("query_embedding.weight", "transformer.tgt_embed.weight"),
    ("memory_trans_fc.", "transformer.enc_output."),
    ("memory_trans_norm.", "transformer.enc_output_norm."),
    ("dn_query_generator.label_embedding.", "label_enc."),
    ("encoder.layers.{}.self_attn.", "transformer.encoder.layers.{}.attentions.0."),
    ("encoder.layers.{}.ffn.", "transformer.encoder.layers.{}.ffns.0."),
    ("encoder.layers.{}.norms.", "transformer.encoder.layers.{}.norms."),
    ("decoder.layers.{}.self_attn.", "transformer.decoder.layers.{}.attentions.0."),
    ("decoder.layers.{}.cross_attn.", "transformer.decoder.layers.{}.attentions.1."),
    ("decoder.layers.{}.ffn.", "transformer.decoder.layers.{}.ffns.0."),
    ("decoder.layers.{}.norms.", "transformer.decoder.layers.{}.norms."),
    ("decoder.ref_point_head.", "transformer.decoder.ref_point_head."),
    ("decoder.norm.", "transformer.decoder.norm."),
    ("bbox_head.cls_branches.{}.", "class_embed.{}."),
    ("bbox_head.reg_branches.{}.0.", "bbox_embed.{}.layers.0."),
    ("bbox_head.reg_branches.{}.2.", "bbox_embed.{}.layers.1."),
    ("bbox_head.reg_branches.{}.4.", "bbox_embed.{}.layers.2."),
)
_ADAPTER = "adapter."
# What models of Detectron2 and detrex have beside their backbone, and those of mmdet and mmseg have not.
_OF_DETECTRON2 = ("proposal_generator.", "roi_heads.", "sem_seg_head.", "transformer.", "class_embed.")
# detrex registers the heads of its detector once more in its decoder.
_HEADS = ("class_embed.", "bbox_embed.")
_SHARED = "transformer.decoder."


def to_detectron2(
    weights: Mapping[str, Tensor], prefix: str = "backbone.net.", adapted: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """A detector of mmdet, a released classifier or a backbone in Detectron2's names.

    A model of Detectron2 or detrex keeps its names, and its heads with them.

    Args:
        weights: Name to tensor.
        prefix: Where the detector has the backbone. The pyramid or the adapter goes along if this ends in "net.", as
            `SimpleFeaturePyramid` and `AdaptedBackbone` have it.
        adapted: Whether the detector's pyramid is our `AdaptedBackbone` with `SimpleFPN`, not `SimpleFeaturePyramid`.

    Returns:
        Detectron2's names to tensors, and the names that were left out.

    Raises:
        CheckpointError: It has no De-focus backbone, or a pyramid that cannot be told.
    """
    backbone, others = backbone_from_checkpoint(weights)
    (source,) = find_backbones(weights)
    simple = source.removesuffix("net.") + f"{_ADAPTER}lateral_convs."
    of_detectron2 = any("simfp_" in name or name.startswith(_OF_DETECTRON2) for name in others)
    if not of_detectron2 and any(name.startswith(simple) for name in others):
        # As transformers' folders have it: our adapter on a backbone, which mmdet has as a neck.
        converted, left = to_detectron2(to_mmdet(weights)[0], prefix, adapted)
        return converted, left + to_mmdet(weights)[1]
    converted = {prefix + name: value for name, value in backbone.items()}
    if of_detectron2:
        # Where the backbone is to stand is no pyramid.
        left = [name for name in others if name.startswith(prefix)]
        return converted | {name: weights[name] for name in others if name not in left}, left
    pyramid = {}
    if prefix.endswith("net."):
        outer = prefix.removesuffix("net.")
        levels = levels_in_mmdet(weights)
        adapter = source.removesuffix("net.") + _ADAPTER
        if levels and not adapted:
            pyramid = {ours: outer + theirs for ours, theirs in _pyramid(levels, _patch_size(backbone))}
        elif levels or any(name.startswith("neck.resamples.") for name in others):
            adapter = "neck."
        for name in others:
            if name.startswith(adapter):
                pyramid[name] = outer + _ADAPTER + name.removeprefix(adapter)
    left = []
    for name in others:
        new = pyramid.get(name) or _rename(name, _DINO)
        if new is None:
            left.append(name)
            continue
        converted[new] = weights[name]
        if new.startswith(_HEADS):
            converted[_SHARED + new] = weights[name]
    return converted, left


def to_mmdet(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A detector of Detectron2 or detrex in mmdet's names: the inverse of `to_detectron2`.

    Args:
        weights: Name to tensor.

    Returns:
        mmdet's names to tensors, and the names that were left out.

    Raises:
        CheckpointError: It has mmdet's names already, or no De-focus backbone.
    """
    if any(name.startswith("neck.") and "norm_layer" in name for name in weights):
        raise CheckpointError("the checkpoint has mmdet's names already (neck.*)")
    backbone, others = backbone_from_checkpoint(weights)
    (prefix,) = find_backbones(weights)
    outer = prefix.removesuffix("net.")
    patch_size = _patch_size(backbone)
    stages = {int(match[1]) for name in others if (match := re.match(re.escape(outer) + r"simfp_(\d+)\.", name))}
    levels = sorted(stage - _stage(0, patch_size) for stage in stages)
    pyramid = {outer + theirs: ours for ours, theirs in _pyramid(levels, patch_size)}
    adapter = [name for name in others if name.startswith(outer + _ADAPTER)]
    # Of the adapters the simple pyramid alone is a neck.
    is_neck = any(name.startswith(f"{outer}{_ADAPTER}lateral_convs.") for name in adapter)
    for name in adapter:
        pyramid[name] = ("neck." if is_neck else "backbone." + _ADAPTER) + name.removeprefix(outer + _ADAPTER)
    place = "backbone." if is_neck or not adapter else "backbone.net."
    converted = {place + name: value for name, value in backbone.items()}
    # Other detectors have some of detrex' names, too: those of transformers.
    is_detrex = any(name.startswith("transformer.") for name in others)
    backwards = [(theirs, ours) for ours, theirs in _DINO] if is_detrex else []
    left = []
    for name in others:
        if name.startswith(_SHARED) and name.removeprefix(_SHARED).startswith(_HEADS):
            # The same tensors as those without this prefix.
            continue
        new = pyramid.get(name) or _rename(name, backwards)
        if new is None:
            left.append(name)
        else:
            converted[new] = weights[name]
    return converted, left


def to_classifier(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A De-focus classifier in the released names, those of timm's models: as of `DefocusClassifier`.

    Args:
        weights: Name to tensor, of a classifier under transformers, or any other.

    Returns:
        The released names to tensors, and the names that were left out.

    Raises:
        CheckpointError: It has no De-focus backbone, or no heads of a classifier.
    """
    backbone, left = backbone_from_checkpoint(weights)
    heads = classifier_heads(weights)
    if not heads:
        raise CheckpointError("there are no heads of a classifier (head.* and head2.*): take its backbone alone")
    theirs = {re.sub(r"^patch_embed\.projection\.", "patch_embed.proj.", name): backbone[name] for name in backbone}
    return theirs | heads, [name for name in left if not re.search(r"(?:^|\.)head2?\.(?:\d\.)?(?:weight|bias)$", name)]


def _patch_size(backbone: Mapping[str, Tensor]) -> int:
    return backbone["patch_embed.projection.weight"].shape[-1]


def _stage(level: int, patch_size: int) -> int:
    """Detectron2's number of a level, 0 for the finest: the logarithm of its stride."""
    return patch_size.bit_length() - 1 - 2 + level


def levels_in_mmdet(names: Iterable[str]) -> list[int]:
    """Which of the four levels `SimpleFPN` has, by its parameters' names under mmdet; none without a pyramid.

    Raises:
        CheckpointError: The names do not tell.
    """
    names = set(names)
    count = 0
    while f"neck.lateral_convs.{count}.norm_layer.weight" in names:
        count += 1
    if count == 0:
        return []
    for start in (0, 1):
        if f"neck.fpn{start + 1}.0.weight" in names:
            return list(range(start, start + count))
    if count == 1:
        raise CheckpointError("the pyramid (neck.*) has one level, and its names do not tell which")
    return [2, 3]


def _pyramid(levels: Iterable[int], patch_size: int) -> Iterable[tuple[str, str]]:
    """mmdet's and Detectron2's name, the latter below the backbone, of each parameter that a pyramid may have."""
    for i, level in enumerate(levels):
        before = _LAYERS_BEFORE[level]
        theirs = f"simfp_{_stage(level, patch_size)}"
        for part in ("weight", "bias"):
            for layer in range(before):
                yield f"neck.fpn{level + 1}.{layer}.{part}", f"{theirs}.{layer}.{part}"
            for layer, ours in enumerate((f"neck.lateral_convs.{i}", f"neck.fpn_convs.{i}"), start=before):
                yield f"{ours}.conv.{part}", f"{theirs}.{layer}.{part}"
                yield f"{ours}.norm_layer.{part}", f"{theirs}.{layer}.norm.{part}"


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    """The other framework's name, None if the table has none."""
    for old, new in table:
        pattern = re.escape(old).replace(r"\{\}", r"(\d+)")
        match = re.match(pattern if old.endswith(".") else pattern + "$", name)
        if match:
            return new.format(*match.groups()) + name[match.end() :]
    return None
