"""Mirrors backbones/layers."""
