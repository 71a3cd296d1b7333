"""Patches that are whole volumes, for methods that walk through them slice by slice."""

from collections.abc import Callable
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from synfoc3d.nnunet.volume_size import volume_size

VOLUMES = 2  # per batch, where the user says nothing: a plan counts patches, or slices
Views = tuple[Any, bool, Any, tuple[int, ...]]  # rotation, whether it is in-plane, size cut before it, mirrored axes


def whole_volumes(plans: PlansManager, configuration: ConfigurationManager) -> ConfigurationManager:
    """Return a configuration whose patches have a median case's (D, H, W) voxels; that of the plans stays as it is.

    Args:
        plans: of the dataset.
        configuration: as it is in the plans.
    """
    return ConfigurationManager(configuration.configuration | {"patch_size": list(volume_size(plans, configuration))})


def in_plane_views(configuration: ConfigurationManager, of_patches: Callable[[], Views]) -> Views:
    """Return what nnU-Net does with patches; with those of a 2d plan, it does the same with all slices of a volume.

    Args:
        configuration: that of :func:`whole_volumes`.
        of_patches: asks nnU-Net, which looks at the configuration's patch.
    """
    depth, *slice_size = configuration.patch_size
    if len(configuration.median_image_size_in_voxels) == 3:
        return of_patches()
    configuration.configuration["patch_size"] = slice_size
    try:
        rotation, _, size, mirrored = of_patches()
    finally:
        configuration.configuration["patch_size"] = [depth, *slice_size]
    return rotation, True, [depth, *size], tuple(axis + 1 for axis in mirrored)
