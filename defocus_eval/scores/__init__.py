"""Scores of each kind of task, from ground truth and predictions.

Each module gives official numbers and what they are made of: counts by image, from which intervals, differences and
analyses follow without matching again.
"""
