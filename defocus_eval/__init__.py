"""From prediction files of any trainer to official scores, error analysis, submissions and pages.

Nothing here imports a trainer, PyTorch or the backbones: files in, numbers and files out.
"""
