"""nnU-Net's plans of a dataset that there is not, as far as a prediction asks for them."""

from collections.abc import Sequence

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.nnunet.case_files import ModelInfo

RESAMPLING = {"order_z": 0, "force_separate_z": None}


def model_info(patch: Sequence[int], classes: int, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> ModelInfo:
    """Return what a prediction of one channel is made for.

    Args:
        patch: ([D,] H, W) voxels; two numbers are the configuration 2d.
        classes: K, with background.
        spacing: z, y, x in mm; of 2d only y and x count.
    """
    name = "2d" if len(patch) == 2 else "3d_fullres"
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "architecture": {},
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing[-len(patch) :]),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **RESAMPLING},
        "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **RESAMPLING},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **RESAMPLING},
    }
    plans = {
        "label_manager": "LabelManager",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "original_median_shape_after_transp": [1, *patch][-3:],
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {name: configuration},
    }
    labels = {"background": 0, **{f"structure{value}": value for value in range(1, classes)}}
    dataset = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    return ModelInfo(PlansManager(plans), name, dataset)
