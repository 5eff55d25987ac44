"""Mirrors backbones/benchmark."""
