"""Where nnU-Net finds the trainers of this package, and those of a user; light to import."""

from importlib import resources
from pathlib import Path

TRAINER_VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> Path:
    """Return the folder that nnU-Net searches for these trainers."""
    return Path(str(resources.files("synfoc3d.trainers")))
