"""Mirrors studies."""
