"""Level 4: what is fitted to cached activations (PCA, dictionaries), how it is fitted and how it is stored."""
