"""``python -m synfoc3d``: the command line."""

from synfoc3d.cli import main

main()
