"""From files to an nnU-Net dataset: import, unlabelled cases, splits, generated data."""
