"""Scores of each kind of task. Each module turns ground truth and predictions into official numbers and what they
are made of: counts by image, from which intervals, differences and analyses follow without matching again."""
