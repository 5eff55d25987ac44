"""What `defocus train-transformers` knows beyond transformers' Trainer: data sets, heads, learning rates, scores."""
