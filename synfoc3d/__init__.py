"""Semi-supervised segmentation of medical volumes: SynFoC and its relatives inside nnU-Net."""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "trainers").is_dir():  # a checkout keeps the stage folders beside this one, an installation inside it
    __path__.append(str(_here.parent))
