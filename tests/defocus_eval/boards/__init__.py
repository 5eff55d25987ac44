"""Mirrors defocus_eval/boards."""
