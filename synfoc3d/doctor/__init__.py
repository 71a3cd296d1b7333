"""``synfoc3d doctor``: what is missing or wrong on this machine, and how to mend it."""
