"""Mirrors backbones/integrations/app."""
