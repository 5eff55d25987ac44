"""Mirrors defocus_eval/formats."""
