"""What an operator that no formula counts is called in the list of those."""

import torch

ELEMENTWISE = "elementwise"
NORMS = "reductions, norms and softmax"
MOVES = "copies, views and new tensors"

# Names of aten's operators, less the mark of those in place.
_NORM_NAMES = """
    sum mean amax amin max min argmax argmin any all prod cumsum cumprod var var_mean std linalg_vector_norm norm
    aminmax native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update batch_norm_elemt cudnn_batch_norm
    _fused_rms_norm rms_norm _softmax _log_softmax _safe_softmax logsumexp glu
"""
_MOVE_NAMES = """
    clone copy contiguous _to_copy cat stack index index_select gather scatter slice_scatter select_scatter index_put
    masked_fill masked_scatter constant_pad_nd reflection_pad1d reflection_pad2d replication_pad2d repeat
    repeat_interleave flip roll tril triu where _reshape_copy _unsafe_view _unsafe_index _unsafe_index_put im2col
    pixel_shuffle pixel_unshuffle channel_shuffle embedding empty empty_like empty_strided new_empty new_empty_strided
    new_zeros new_ones new_full zeros zeros_like ones ones_like full full_like fill zero arange linspace scalar_tensor
    eye lift_fresh lift_fresh_copy detach resize set_ _local_scalar_dense one_hot _shape_as_tensor split_with_sizes_copy
    meshgrid rand randn rand_like randn_like randperm randint bernoulli uniform normal
"""
_NORMS, _MOVES = set(_NORM_NAMES.split()), set(_MOVE_NAMES.split())
# Pointwise arithmetic that torch does not mark so.
_ELEMENTWISE = {"native_dropout", "floor_divide"}


def describe(func: torch._ops.OpOverload) -> str:
    """The group of ``func``, or its own name, `namespace.operator`, where it belongs to none."""
    namespace, _, name = func._schema.name.partition("::")
    if namespace in ("aten", "prim", "prims"):
        plain = name.removesuffix("_") if not name.startswith("__") else name
        if plain in _NORMS:
            return NORMS
        if plain in _MOVES or name in _MOVES or _is_view(func):
            return MOVES
        if torch.Tag.pointwise in func.tags or plain in _ELEMENTWISE:
            return ELEMENTWISE
    return f"{namespace}.{name}"


def _is_view(func: torch._ops.OpOverload) -> bool:
    """Whether ``func`` only gives another look at its input, or turns the input into one."""
    if torch.Tag.inplace_view in func.tags:
        return True
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return bool(aliases) and not any(info.is_write for info in aliases)
