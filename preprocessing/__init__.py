"""From files to an nnU-Net dataset: import, unlabeled cases, splits, generated data."""
