"""Mirrors backbones/flops."""
