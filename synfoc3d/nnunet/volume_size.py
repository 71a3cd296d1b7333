"""How large the volumes are that a network which walks through them is trained on, and shown in prediction."""

import math

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


def volume_size(plans: PlansManager, configuration: ConfigurationManager) -> tuple[int, ...]:
    """Return the size of a median case, at least that of a patch: (D, H, W) in voxels, also of a 2d configuration.

    Args:
        plans: of the dataset.
        configuration: as it is in the plans.
    """
    patch = configuration.patch_size
    median = [math.ceil(length) for length in configuration.median_image_size_in_voxels]
    in_plane = tuple(map(max, patch[-2:], median[-2:]))
    if len(patch) == 3:
        return max(patch[0], median[0]), *in_plane
    return int(plans.original_median_shape_after_transp[0]), *in_plane  # slices of 2d plans are not resampled
