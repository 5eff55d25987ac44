"""What of our backbones should not decay, and how deep each parameter lies."""

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

from backbones import defocus


def get_optimizer_params(model: nn.Module, **settings) -> list[dict]:
    """Detectron2's `get_default_optimizer_params` that knows what of our backbones should not decay.

    Detectron2's own leaves `weight_decay_norm` to torch's norms and knows neither RMSNorm nor the scan's constants.

    Args:
        model: The detector.
        **settings: As of `get_default_optimizer_params`, which rejects others.

    Returns:
        Parameter groups; those of `no_weight_decay` of each De-focus backbone in ``model`` have no weight decay.
    """
    undecayed = set()
    for module in model.modules():
        if isinstance(module, defocus.DefocusBackbone):
            undecayed |= {id(module.get_parameter(name)) for name in module.no_weight_decay()}
    groups = []
    for group in get_default_optimizer_params(model, **settings):
        free = [p for p in group["params"] if id(p) in undecayed]
        rest = [p for p in group["params"] if id(p) not in undecayed]
        groups.append({**group, "params": rest})
        groups.append({**group, "params": free, "weight_decay": 0.0})
    return reduce_param_groups(groups)


def get_lr_decay_rate(name: str, lr_decay_rate: float, num_layers: int) -> float:
    """Layer-wise decay of the learning rate: Detectron2's `get_vit_lr_decay_rate` that knows the class token.

    Args:
        name: A parameter's name in the detector.
        lr_decay_rate: The factor from a block to the one below.
        num_layers: Blocks of the backbone.

    Returns:
        ``lr_decay_rate ** (num_layers + 1)`` for patch embedding and class token, ``lr_decay_rate`` for the last
        block, 1 for all that follows.
    """
    if name.startswith("backbone") and name.endswith(".cls_token"):
        name = name.replace(".cls_token", ".patch_embed")
    return get_vit_lr_decay_rate(name, lr_decay_rate, num_layers)
