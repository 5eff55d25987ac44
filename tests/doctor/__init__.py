"""Mirrors backbones/doctor."""
