"""From checkpoints to volumes and figures: prediction and evaluation."""
