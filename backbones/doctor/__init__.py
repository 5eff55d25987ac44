"""Tells on a new machine which kernels will run, whether they are right, and how fast: `python -m backbones.doctor`."""
