"""Sizes of volumes for networks that walk through them."""

from types import SimpleNamespace

import pytest

from synfoc3d.nnunet.volume_size import volume_size

SIZES = {
    "2d": ([256.0, 216.0], [256, 224], (9, 256, 224)),
    "2d, large slices": ([512.0, 500.5], [256, 224], (9, 512, 501)),
    "3d": ([35.0, 50.0, 35.0], [40, 56, 40], (40, 56, 40)),
    "3d, large volumes": ([200.2, 400.0, 50.0], [64, 160, 160], (201, 400, 160)),
}


@pytest.mark.parametrize("key", SIZES)
def test_size_is_a_median_case_s_and_at_least_a_patch_s(key):
    median, patch, expected = SIZES[key]
    plans = SimpleNamespace(original_median_shape_after_transp=[9, 256, 216])
    configuration = SimpleNamespace(median_image_size_in_voxels=median, patch_size=patch)
    assert volume_size(plans, configuration) == expected
