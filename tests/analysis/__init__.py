"""Mirrors backbones/analysis."""
