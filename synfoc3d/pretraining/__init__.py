"""Pre-training of the compact foundation network on generated images only."""
