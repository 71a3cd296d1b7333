"""nnU-Net's life cycle around a Method: the base trainer and its parts."""
