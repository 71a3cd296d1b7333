"""Experiments: several methods, splits and seeds from one plan, run through the command line, ending in one table."""
