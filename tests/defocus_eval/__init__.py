"""Mirrors defocus_eval."""
