"""Mirrors backbones/export."""
