"""Released formats to ours: pure functions that leave their arguments unchanged."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from backbones.checkpoints.read import CheckpointError

# Where checkpoints keep their weights, best first: an average generalises better than the last step.
_CONTAINERS = ("model_ema", "ema_state_dict", "state_dict_ema", "state_dict", "model", "module")
_WRAPPERS = ("module.", "_orig_mod.", "backbone.", "bottom_up.", "net.")


def weights_of(checkpoint: Mapping, container: str | None = None) -> tuple[dict[str, Tensor], str | None]:
    """The state dict in a checkpoint.

    Args:
        checkpoint: What `read_checkpoint` returned.
        container: The key that holds the state dict; None takes the first of `model_ema`, `ema_state_dict`,
            `state_dict_ema`, `state_dict`, `model`, `module` that is there, else the checkpoint itself.

    Returns:
        Name to tensor, and the key it stood under (None for the checkpoint itself).

    Raises:
        CheckpointError: No such key, or no tensors.
    """
    if container is not None and container not in checkpoint:
        raise CheckpointError(f"the checkpoint has no {container!r}; its keys are {_some(list(checkpoint))}")
    keys = (container,) if container is not None else _CONTAINERS
    for key in keys:
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
            return {k: v for k, v in inner.items() if isinstance(v, Tensor)}, key
        # timm and others nest once more: model_ema = {"module": ..., "decay": ...}.
        if isinstance(inner, Mapping) and "module" in inner and isinstance(inner["module"], Mapping):
            return {k: v for k, v in inner["module"].items() if isinstance(v, Tensor)}, key
    tensors = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"the checkpoint holds no weights; its keys are {_some(list(checkpoint))}")
    return tensors, None


def backbone_from_checkpoint(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's part of a released classifier, a detector or a backbone.

    Strips wrapper prefixes, takes what stands under `backbone.` where there is such a part, renames the patch
    embedding, and leaves classification heads out.

    Args:
        weights: Name to tensor.

    Returns:
        Our names to tensors, and the names that were left out.
    """
    names = {name: name for name in weights}
    while True:
        for prefix in _WRAPPERS:
            inside = [name for name, short in names.items() if short.startswith(prefix)]
            if any(names[name].startswith((prefix + "patch_embed.", prefix + "blocks.")) for name in inside) or (
                inside and len(inside) == len(names)
            ):
                names = {name: names[name].removeprefix(prefix) for name in inside}
                break
        else:
            break
    kept = {}
    for name, short in names.items():
        if not re.match(r"head\d*\.", short):
            kept[re.sub(r"^patch_embed\.proj\.", "patch_embed.projection.", short)] = weights[name]
    left = [name for name in weights if name not in names or re.match(r"head\d*\.", names[name])]
    return kept, left


def select_head_classes(weights: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """A classifier for a subset of its classes, such as the 1,000 of ImageNet-1K out of 21,841.

    Args:
        weights: Name to tensor of a released classifier.
        rows: For each new class, its row in the present heads.

    Returns:
        All weights, the last linear layer of `head` and of `head2` reduced to ``rows``, in their order.

    Raises:
        CheckpointError: There is no head, or a row is outside it.
    """
    last = {}
    for name in weights:
        match = re.match(r"(head\d*)\.(?:(\d+)\.)?(?:weight|bias)$", name)
        if match:
            last.setdefault(match[1], set()).add(int(match[2] or 0))
    if not last:
        raise CheckpointError("the checkpoint has no classification head (head.*) to take classes from")
    out = dict(weights)
    for head, layers in last.items():
        for kind in ("weight", "bias"):
            name = next(n for n in (f"{head}.{max(layers)}.{kind}", f"{head}.{kind}") if n in weights)
            classes = weights[name].shape[0]
            outside = [row for row in rows if not 0 <= row < classes]
            if outside:
                raise CheckpointError(f"{name} has classes 0..{classes - 1}; the map asks for {_some(outside)}")
            out[name] = weights[name][list(rows)].clone()
    return out


def _some(items: list, limit: int = 6) -> str:
    """A list for a message, cut short."""
    shown = ", ".join(map(str, items[:limit]))
    return shown + (f", … ({len(items)} in all)" if len(items) > limit else "")
