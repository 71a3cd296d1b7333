"""Packages that only some networks need: imported when such a network is asked for."""

from types import ModuleType

from synfoc3d.errors import UserError


def sam2_modules() -> ModuleType:
    """Return transformers' SAM 2: its modules and their configurations.

    Raises:
        UserError: transformers is not installed, or a version without them.
    """
    try:
        from transformers.models.sam2 import modeling_sam2  # takes seconds, and most networks need none of it
    except ImportError as error:
        raise UserError(
            "Networks of the SAM 2 family are built from modules of the package transformers, which cannot be imported "
            f'({error}): run pip install "synfoc3d[sam2]".'
        ) from error
    return modeling_sam2
