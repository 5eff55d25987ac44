"""Mirrors backbones/integrations."""
