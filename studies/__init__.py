"""Experiments that re-run the argument of the paper at a size that a laptop can."""
