"""Sizes of the Triton kernels that others ask for too, without running them or having Triton."""

# Tokens between two kept states.
CHUNK = 32
