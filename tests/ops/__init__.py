"""Mirrors backbones/ops."""
