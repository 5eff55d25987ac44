"""Our operators, and what torch forgot, in the table of torch's own counter.

With this module imported `torch.utils.flop_counter.FlopCounterMode` counts our operators, where it counted them as zero
without a word. It sees operators, not operations: of a backend in plain PyTorch it counts what that does. `FlopCounter`
counts each operation once, whatever it runs on.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count

from backbones.ops import flops

# Beginning of the names that the backends of an operation give their operators: `defocus::scan_cpu`.
_STEMS = {
    "scan_": flops.scan_flops,
    "causal_conv1d_silu_": flops.causal_conv1d_silu_flops,
    "mamba_inner_": flops.mamba_inner_flops,
    "decay_attention_": flops.decay_attention_flops,
    "retention_": flops.retention_flops,
    "deformable_attention_": flops.deformable_attention_flops,
}


def _blocked_attention_flops(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, causal: bool) -> int:
    """Of the operators within the `torch` and `cpu` backends of `decay_attention`, `(b, h, l, ·)`."""
    b, h, l, keys = q.shape
    return flops.attention_flops(b, l, h, keys, v.shape[3], causal)


def operators() -> list[str]:
    """Names of our operators that compute forward, without the `defocus::`."""
    names = (name.removeprefix("defocus::") for name in torch._C._dispatch_get_all_op_names() if "defocus::" in name)
    return sorted({name.partition(".")[0] for name in names if not name.endswith("_backward")})


def _register(packet, formula) -> None:
    # Reloaded, or another version of torch that knows it by now.
    if packet not in flop_registry:
        register_flop_formula(packet, get_raw=True)(lambda *args, out_val=None, **kwargs: formula(*args, **kwargs))


for _operator in (torch.ops.defocus.blocked_attention, torch.ops.defocus.decay_attention_cpu):
    _register(_operator, _blocked_attention_flops)
for _name in operators():
    for _stem, _formula in _STEMS.items():
        if _name.startswith(_stem):
            _register(getattr(torch.ops.defocus, _name), _formula)
# What `scaled_dot_product_attention` runs on a CPU, and on devices of others.
for _name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"):
    if hasattr(torch.ops.aten, _name):
        _register(
            getattr(torch.ops.aten, _name),
            lambda query, key, value, *_, **__: sdpa_flop_count(query.shape, key.shape, value.shape),
        )
