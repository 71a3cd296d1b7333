"""The report of a comparison as one page, with its plots and overlays."""
