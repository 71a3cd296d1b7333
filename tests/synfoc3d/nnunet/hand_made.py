"""A model's plans and description by hand, of which preprocessing knows every step."""

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.nnunet.case_files import ModelInfo

RESAMPLING = "resample_data_or_seg_to_shape"


def hand_made_info(
    spacing,
    *,
    reader="NibabelIO",
    transpose=(0, 1, 2),
    channels=3,
    ending=".nii.gz",
    labels=None,
    separate_z=False,
    regions_class_order=None,
):
    """Return a model whose preprocessing transposes, crops and resamples linearly, and leaves values as they are."""
    kwargs = {"order": 1, "order_z": 0, "force_separate_z": separate_z}
    name = "2d" if len(spacing) == 2 else "3d_fullres"
    configuration = {
        "architecture": {},
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8] * len(spacing),
        "spacing": list(spacing),
        "normalization_schemes": ["NoNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_data_kwargs": kwargs | {"is_seg": False},
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_seg_kwargs": kwargs | {"is_seg": True},
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": kwargs | {"is_seg": False},
    }
    plans = {
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(channels)},
        "configurations": {name: configuration},
        "label_manager": "LabelManager",
    }
    description = {
        "channel_names": {str(channel): f"channel {channel}" for channel in range(channels)},
        "labels": labels or {"background": 0, "wall": 1, "cavity": 2},
        "file_ending": ending,
    }
    if regions_class_order:
        description["regions_class_order"] = regions_class_order
    return ModelInfo(PlansManager(plans), name, description)
