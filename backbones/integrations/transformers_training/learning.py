"""Which parameter learns at which rate, and which decays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

# What wrappers put into the names of parameters.
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "module.")


class Learning(NamedTuple):
    """How a parameter learns.

    Attributes:
        rate: Multiplies the learning rate.
        decays: Whether weight decay pulls at it.
    """

    rate: float
    decays: bool


def plan_learning(model: nn.Module, backbone_rate: float = 1.0, layer_decay: float = 1.0) -> dict[str, Learning]:
    """How each parameter of a model learns, by name.

    A parameter of layer i of a De-focus backbone (0 the patch embedding, depth + 1 the final norm and what adapts the
    maps) learns at ``backbone_rate`` · ``layer_decay``^(depth + 1 - i), all others at 1. Vectors and what the backbone
    lists in `no_weight_decay` do not decay.

    Args:
        model: With its parameters in their own shapes, that is, before it is wrapped.
        backbone_rate: As above.
        layer_decay: As above.

    Raises:
        ValueError: A rate is out of range, or is not 1 where there is no De-focus backbone.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie above 0 and not above 1, got {layer_decay}")
    if not backbone_rate > 0:
        raise ValueError(f"backbone_rate must be positive, got {backbone_rate}")
    plan = {name: Learning(1.0, p.ndim > 1) for name, p in model.named_parameters()}
    backbones = _find_backbones(model)
    if not backbones and (layer_decay, backbone_rate) != (1, 1):
        raise ValueError("layer_decay and backbone_rate need a De-focus backbone in the model, which has none")
    for prefix, net in backbones.items():
        undecayed = net.no_weight_decay()
        last = net.get_layer_id("norm.weight")
        for name, _ in net.named_parameters():
            rate = backbone_rate * layer_decay ** (last - net.get_layer_id(name))
            plan[prefix + name] = Learning(rate, plan[prefix + name].decays and name not in undecayed)
    return plan


def _find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """What tells layers and undecayed parameters, with all around it that does, by the beginning of the names."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        tells = hasattr(module, "get_layer_id") and hasattr(module, "no_weight_decay")
        if tells and not any(prefix.startswith(other) for other in found):
            found[prefix] = module
    return found


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], plan: Mapping[str, Learning], rate: float, decay: float
) -> list[dict]:
    """Groups for an optimizer, one for each way to learn, in the order of the first parameter of each.

    Args:
        parameters: (name, parameter) of what is to be trained; the names may be those of a wrapped model.
        plan: Of `plan_learning`.
        rate: Learning rate.
        decay: Weight decay.
    """
    groups: dict[Learning, dict] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "") if name not in plan else name
        learning = plan[name]
        group = {"params": [], "lr": rate * learning.rate, "weight_decay": decay if learning.decays else 0.0}
        groups.setdefault(learning, group)["params"].append(parameter)
    return list(groups.values())
