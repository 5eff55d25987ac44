"""Mirrors backbones/mixers."""
