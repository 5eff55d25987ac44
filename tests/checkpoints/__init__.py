"""Mirrors backbones/checkpoints."""
