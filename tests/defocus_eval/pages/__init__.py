"""Mirrors defocus_eval/pages."""
