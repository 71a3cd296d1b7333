"""Whether two trainings, or a training and a model's files, agree about what nnU-Net makes of scans."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

OF_ALL_CONFIGURATIONS = (
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "foreground_intensity_properties_per_channel",
    "label_manager",
)
OF_DATASET = ("channel_names", "file_ending")  # what labels mean is compared on its own, see synfoc3d.nnunet.labels
UNUSED = ("batch_size", "data_identifier")  # a network predicts alike whatever they are


def differing_plans(
    begun: Mapping[str, Any],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    *,
    only_prediction: bool = False,
) -> list[str]:
    """Name what differs between a training's plans and dataset.json and others: ``patch_size in the plans``, ...

    Args:
        begun: ``init_args`` of a checkpoint, which name the configuration as well.
        plans: content of other plans.
        dataset_json: content of another dataset.json.
        only_prediction: leave out what does not matter to a trained network.
    """
    name = begun["configuration"]
    then, now = PlansManager(dict(begun["plans"])), PlansManager(dict(plans))
    if name not in now.available_configurations:
        return [f"configuration {name} in the plans, which it lacks now"]
    ours, theirs = then.get_configuration(name).configuration, now.get_configuration(name).configuration
    unused = UNUSED if only_prediction else ()
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key not in unused]
    keys += [key for key in OF_ALL_CONFIGURATIONS if then.plans.get(key) != now.plans.get(key)]
    described = [key for key in OF_DATASET if begun["dataset_json"].get(key) != dataset_json.get(key)]
    return [f"{key} in the plans" for key in keys] + [f"{key} in dataset.json" for key in described]
