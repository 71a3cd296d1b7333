"""Everything that leans on nnU-Net's inner life and would break with another nnU-Net."""
