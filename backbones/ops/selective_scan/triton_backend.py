"""The `triton` backend of the scan. Its kernels are imported when first run: nobody else needs Triton."""

import os

from backbones.ops.dispatch import import_refusal
from backbones.ops.selective_scan.registration import register_scan

# Tokens between two kept states; here because shapes are asked for without running a kernel.
CHUNK = 32


def refusal(device_type: str) -> str | None:
    """Why Triton kernels cannot serve ``device_type``, or None."""
    # Triton's interpreter, to check the kernels without a GPU.
    interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not interpreted:
        return "Triton kernels need CUDA (or, to check them on the CPU, TRITON_INTERPRET=1 set before Python starts)"
    return import_refusal("triton", "pip install triton")


def _forward(*args):
    from backbones.ops.selective_scan import triton_kernels

    return triton_kernels.forward(*args)


def _backward(*args):
    from backbones.ops.selective_scan import triton_kernels

    return triton_kernels.backward(*args)


triton_defocus_scan = register_scan("triton", _forward, _backward, CHUNK)
