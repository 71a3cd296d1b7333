"""nnU-Net trainer classes, one per method: nnU-Net's life cycle around a Method."""
