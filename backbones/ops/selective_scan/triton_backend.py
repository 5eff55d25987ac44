"""The `triton` backend of the scan. Its kernels are imported when first run: nobody else needs Triton."""

from backbones.ops.selective_scan.registration import register_scan
from backbones.ops.selective_scan.triton_sizes import CHUNK


def _forward(*args):
    from backbones.ops.selective_scan import triton_kernels

    return triton_kernels.forward(*args)


def _backward(*args):
    from backbones.ops.selective_scan import triton_kernels

    return triton_kernels.backward(*args)


triton_defocus_scan = register_scan("triton", _forward, _backward, CHUNK)
