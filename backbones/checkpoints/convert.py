"""Released formats to ours: pure functions that leave their arguments unchanged."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from backbones.checkpoints.read import CheckpointError

# Where checkpoints keep their weights. Two lists, for what is best in a file is told by who wrote it.
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state", "ema_state_dict")
_CONTAINERS = ("state_dict", "model", "module")
# What torch.compile and activation checkpointing put into names, at any depth.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module)\.")
_EMBEDDING = re.compile(r"((?:.*\.)?)patch_embed\.proj(?:ection)?\.weight$")
_HEAD = re.compile(r"head\d*\.")


def find_average(checkpoint: Mapping) -> str | None:
    """The key under which a checkpoint keeps a moving average of its weights, by the conventions of who wrote it.

    =============== ======================= ==================
    written by      the average             the last step
    =============== ======================= ==================
    the release     ``model_ema``           ``model``
    timm            ``state_dict_ema``      ``state_dict``
    detrex          ``ema_state``           ``model``
    mmengine        ``state_dict``          ``ema_state_dict``
    others          ``ema_state_dict``      ``state_dict``
    =============== ======================= ==================

    mmengine's EMAHook exchanges both when it saves. Its files tell themselves by the ``steps`` that its average counts.

    Returns:
        The key, or None for a file without an average.
    """
    for key in _AVERAGES:
        inner = _tensors_under(checkpoint, key)
        if inner is None:
            continue
        if key == "ema_state_dict" and "steps" in inner and _tensors_under(checkpoint, "state_dict") is not None:
            return "state_dict"
        return key
    return None


def weights_of(checkpoint: Mapping, container: str | None = None) -> tuple[dict[str, Tensor], str | None]:
    """The state dict in a checkpoint.

    Args:
        checkpoint: What `read_checkpoint` returned.
        container: The key that holds the state dict; None takes the moving average (see `find_average`), else the
            first of ``state_dict``, ``model``, ``module`` that is there, else the checkpoint itself.

    Returns:
        Name to tensor, and the key it stood under (None for the checkpoint itself).

    Raises:
        CheckpointError: No such key, or no tensors.
    """
    if container is not None:
        if container not in checkpoint:
            raise CheckpointError(f"it has no {container!r}; its keys are {_some(list(checkpoint))}")
        weights = _tensors_under(checkpoint, container)
        if weights is None:
            raise CheckpointError(f"there are no weights under {container!r}; its keys are {_some(list(checkpoint))}")
        return weights, container
    for key in (find_average(checkpoint), *_CONTAINERS):
        weights = None if key is None else _tensors_under(checkpoint, key)
        if weights is not None:
            return weights, key
    weights = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"it holds no weights; its keys are {_some(list(checkpoint))}")
    return weights, None


def _tensors_under(checkpoint: Mapping, key: str) -> dict[str, Tensor] | None:
    inner = checkpoint.get(key)
    # Some nest once more: model_ema = {"module": ..., "decay": ...}.
    if isinstance(inner, Mapping) and isinstance(inner.get("module"), Mapping):
        inner = inner["module"]
    if not isinstance(inner, Mapping):
        return None
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)} or None


def find_backbones(weights: Mapping[str, Tensor]) -> list[str]:
    """Where De-focus backbones stand in a state dict: the beginnings of their names, such as ``backbone.net.``.

    Found by what each has, ``patch_embed.proj(ection).weight``, ``cls_token`` and ``blocks.0.*``, whatever is in front.
    """
    names = {_WRAPPERS.sub("", name) for name in weights}
    prefixes = {match[1] for name in names if (match := _EMBEDDING.match(name))}
    return sorted(
        prefix
        for prefix in prefixes
        if f"{prefix}cls_token" in names and any(name.startswith(f"{prefix}blocks.0.") for name in names)
    )


def backbone_from_checkpoint(
    weights: Mapping[str, Tensor], prefix: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's part of a classifier, a detector, a segmentor or a backbone.

    Cuts off what stands before the backbone's names, renames the patch embedding, and leaves out all else: heads,
    necks, adapters.

    Args:
        weights: Name to tensor.
        prefix: The beginning of the backbone's names, with or without the last dot, where there are several.

    Returns:
        Our names to tensors, and the names that were left out.

    Raises:
        CheckpointError: There is no De-focus backbone, there is none under ``prefix``, or there are several.
    """
    found = find_backbones(weights)
    if prefix is not None:
        prefix = prefix and prefix.removesuffix(".") + "."
        if prefix not in found:
            there = f"there {_are(found)}" if found else f"first names: {_some(list(weights), 4)}"
            raise CheckpointError(f"there is no De-focus backbone under {prefix!r}; {there}")
    elif not found:
        raise CheckpointError(
            "there is no De-focus backbone (patch_embed.*, cls_token and blocks.*, whatever stands before); first "
            f"names: {_some(list(weights), 4)}"
        )
    elif len(found) > 1:
        raise CheckpointError(f"there {_are(found)}: say which by prefix=")
    else:
        (prefix,) = found
    kept, left = {}, []
    for name, value in weights.items():
        plain = _WRAPPERS.sub("", name)
        short = plain.removeprefix(prefix)
        if not plain.startswith(prefix) or _HEAD.match(short):
            left.append(name)
        else:
            kept[re.sub(r"^patch_embed\.proj\.", "patch_embed.projection.", short)] = value
    return kept, left


def describe_heads(heads: Mapping[str, Tensor]) -> tuple[str, int]:
    """Kind of a classifier's heads, "linear" or "mlp", and number of its classes, from those of `classifier_heads`."""
    last = max(name for name in heads if name.startswith("head.") and name.endswith("weight"))
    return "linear" if last == "head.weight" else "mlp", len(heads[last])


def classifier_heads(weights: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """The two heads of a De-focus classifier, ``head.*`` and ``head2.*``; none if it is another model.

    Args:
        weights: Name to tensor, with one backbone.
        prefix: As of `backbone_from_checkpoint`.
    """
    (before,) = find_backbones(weights) if prefix is None else [prefix and prefix.removesuffix(".") + "."]
    plain = {_WRAPPERS.sub("", name).removeprefix(before): value for name, value in weights.items()}
    heads = {name: value for name, value in plain.items() if re.match(r"head2?\.(?:\d\.)?(?:weight|bias)$", name)}
    return heads if {name.partition(".")[0] for name in heads} == {"head", "head2"} else {}


def _are(prefixes: list[str]) -> str:
    listed = " and ".join(repr(prefix) for prefix in prefixes)
    return f"{'is one' if len(prefixes) == 1 else f'are {len(prefixes)}'} under {listed}"


def describe_backbone(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, int | float]]:
    """The family and the sizes of a backbone's weights, as its class and ``arch`` take them.

    Args:
        shapes: Name to shape of what `backbone_from_checkpoint` returned.

    Returns:
        "DefocusMamba", "DefocusViT" or "DefocusRetNet", or "" for none that is known, and its sizes as far as they
        show.
    """
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    sizes: dict[str, int | float] = dict(embed_dims=shapes["cls_token"][-1], depth=depth)
    block = {name.removeprefix("blocks.0."): shape for name, shape in shapes.items() if name.startswith("blocks.0.")}
    if {"mixer.A_log", "mixer.dt_proj.weight", "mixer.conv1d.weight"} <= block.keys():
        inner, states = block["mixer.A_log"]
        sizes |= dict(inner_dims=inner, state_dims=states)
        sizes |= dict(dt_rank=block["mixer.dt_proj.weight"][1], conv_kernel=block["mixer.conv1d.weight"][-1])
        return "DefocusMamba", sizes
    if {"mixer.bandpass.log_rate", "mixer.qkv.weight", "mlp.0.weight"} <= block.keys():
        ratio = block["mlp.0.weight"][0] / sizes["embed_dims"]
        return "DefocusViT", sizes | dict(num_heads=block["mixer.bandpass.log_rate"][0], mlp_ratio=ratio)
    if {"mixer.bandpass.log_rate", "mixer.v_proj.weight", "ffn.gate.weight"} <= block.keys():
        sizes |= dict(num_heads=block["mixer.bandpass.log_rate"][0], value_dims=block["mixer.v_proj.weight"][0])
        return "DefocusRetNet", sizes | dict(ffn_dims=block["ffn.gate.weight"][0])
    return "", sizes


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming them, if weights are NaN or infinite: of a training that diverged, or damaged."""
    broken = [
        name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all().item()
    ]
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(weights)} weights are NaN or infinite: {_some(broken)}. The training diverged or "
            "the file is damaged: take an earlier checkpoint"
        )


def select_head_classes(weights: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """A classifier for a subset of its classes, such as the 1,000 of ImageNet-1K out of 21,841.

    Args:
        weights: Name to tensor of a released classifier.
        rows: For each new class, its row in the present heads.

    Returns:
        All weights, the last linear layer of `head` and of `head2` reduced to ``rows``, in their order.

    Raises:
        CheckpointError: There is no head, there are no rows, or one is outside it.
    """
    if not rows:
        raise CheckpointError("the class map is empty: it needs a row of the head for each class")
    last: dict[str, set[int]] = {}
    for name in weights:
        match = re.match(r"(head\d*)\.(?:(\d+)\.)?(?:weight|bias)$", name)
        if match:
            last.setdefault(match[1], set()).add(int(match[2] or 0))
    if not last:
        raise CheckpointError("there is no classification head (head.*) to take classes from")
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
