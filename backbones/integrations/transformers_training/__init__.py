"""What `tools/train_transformers.py` knows beyond transformers' Trainer: data sets, heads, learning rates, scores."""
