"""Mirrors backbones/adapters."""
