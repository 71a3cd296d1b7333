"""Where commands run: one after another or side by side on this machine, on Slurm, on Ray."""
