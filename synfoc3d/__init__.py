"""Semi-supervised segmentation of medical volumes: SynFoC and its relatives inside nnU-Net."""

__version__ = "0.1.0"
