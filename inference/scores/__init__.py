"""Figures: evaluation of masks, comparison of models, statistics and tables."""
