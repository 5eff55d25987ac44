"""Mirrors backbones/kernel_report."""
