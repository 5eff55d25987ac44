"""A second count of FLOPs that shares nothing with the first: by a model's modules and the shapes that they see."""

import contextlib
from collections.abc import Iterator
from math import prod

from torch import Tensor, nn


class SecondCount:
    """FLOPs of a model's modules, a multiply-add counting two, filled by hooks.

    Attributes:
        total: All so far.
        without_rule: Types of modules that hold parameters of more than one dimension and no rule is for.
    """

    def __init__(self):
        self.total = 0
        self.without_rule: set[str] = set()


@contextlib.contextmanager
def second_count(model: nn.Module) -> Iterator[SecondCount]:
    """Counts what the modules of ``model`` do while it lasts."""
    count = SecondCount()
    handles = []
    for module in model.modules():
        names = [kind.__name__ for kind in type(module).__mro__]
        if "Mask2FormerHead" in names:
            _watch_masks(module, count)
        rule = torch_attention if isinstance(module, nn.MultiheadAttention) else None
        rule = rule or next((RULES[name] for name in names if name in RULES), None)
        if rule is not None:
            handles.append(module.register_forward_hook(_adding(count, rule), with_kwargs=True))
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)) and not LEAVES.intersection(names):
            count.without_rule.add(type(module).__name__)
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def _adding(count: SecondCount, rule):
    def hook(module, args, kwargs, out):
        count.total += rule(module, args, kwargs, out)

    return hook


def _watch_masks(head: nn.Module, count: SecondCount) -> None:
    """Products of the queries' masks with the map of pixels, which mmdet's Mask2Former makes in a method."""
    forward_head = head._forward_head

    def watched(*args, **kwargs):
        scores, masks, attention = forward_head(*args, **kwargs)
        count.total += 2 * masks.numel() * head.mask_embed[-1].out_features
        return scores, masks, attention

    head._forward_head = watched


def linear(module, args, kwargs, out):
    return 2 * out.numel() * module.in_features


def convolution(module, args, kwargs, out):
    return 2 * out.numel() * prod(module.kernel_size) * module.in_channels // module.groups


def transposed_convolution(module, args, kwargs, out):
    return 2 * args[0].numel() * prod(module.kernel_size) * module.out_channels // module.groups


def torch_attention(module, args, kwargs, out):
    """`nn.MultiheadAttention`, which calls none of its projections as a module."""
    q, k, v = (kwargs[name] if name in kwargs else args[i] for i, name in enumerate(("query", "key", "value")))
    width = module.embed_dim
    side = 1 if module.batch_first else 0
    batch = q.shape[1 - side]
    queries, keys = q.shape[side], k.shape[side]
    projections = 2 * batch * width * (queries * width + keys * k.shape[2] + keys * v.shape[2] + queries * width)
    return projections + 2 * batch * queries * keys * 2 * width


def mamba(module, args, kwargs, out):
    """What `MambaMixer` does outside of the modules that it calls: its projections, all of which have hooks here."""
    b, l, _ = args[0].shape
    sizes = module.arch
    each = 2 * sizes.conv_kernel + 9 * sizes.state_dims + 2
    return b * l * sizes.inner_dims * each


def vit(module, args, kwargs, out):
    b, l, width = args[0].shape
    pairs = sum(range(1, l + 1)) if module.causal else l * l
    return b * pairs * width * 4


def retnet(module, args, kwargs, out):
    b, l, _ = args[0].shape
    sizes = module.arch
    return b * l * sizes.embed_dims // sizes.num_heads * sizes.value_dims * 5


def timm_attention(module, args, kwargs, out):
    """Both products of a window or an image; the projections are modules."""
    b, l, width = args[0].shape
    return b * l * l * width * 4


def our_deformable(module, args, kwargs, out):
    """Of each query, head, map and point, 5 multiply-adds a channel."""
    _, levels, points = module.sizes
    b, queries, _ = args[0].shape
    return 10 * b * queries * levels * points * module.value_proj.out_features


def their_deformable(module, args, kwargs, out):
    """mmcv's and detrex' module."""
    query = args[0] if args else kwargs["query"]
    return 10 * query.shape[0] * query.shape[1] * module.num_levels * module.num_points * module.value_proj.out_features


RULES = {
    "Linear": linear,
    "Conv1d": convolution,
    "Conv2d": convolution,
    "ConvTranspose2d": transposed_convolution,
    "MambaMixer": mamba,
    "ViTMixer": vit,
    "RetNetMixer": retnet,
    "Attention": timm_attention,
    "WindowAttention": timm_attention,
    "DeformableAttention": our_deformable,
    "MultiScaleDeformableAttention": their_deformable,
}
# Modules whose parameters of several dimensions multiply nothing: class tokens, embeddings of levels and queries.
LEAVES = {
    "DefocusBackbone",
    "InteractionAdapter",
    "Embedding",
    "Bandpass",
    "DINO",
    "DINOTransformer",
    "VisionTransformer",
}


def product_of_masks(out: Tensor, queries: int) -> int:
    """What mmseg's Mask2Former adds at the end: classes of the queries times their masks, at every pixel."""
    return 2 * out.numel() * queries
