"""Mirrors defocus_eval/scores."""
