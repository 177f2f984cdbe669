"""Data: imbalanced subsets, whole batches, augmentation, and loaders for the benchmark."""
