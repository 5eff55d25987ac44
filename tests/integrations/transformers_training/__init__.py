"""Mirrors backbones/integrations/transformers_training."""
