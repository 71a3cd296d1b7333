"""nnU-Net's own files beside data and models, plans and dataset.json: read by name, and looked at before they are used.

nnU-Net looks up what it needs when it needs it, so that a damaged file ends in a KeyError somewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, model_validator

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.json_files import load_json_object
from synfoc3d.files.layout import DESCRIPTION_FILE
from synfoc3d.sections import validate

PLANS_ADVICE = "restore it, or delete it and run synfoc3d preprocess"
DESCRIPTION_ADVICE = "copy it anew from the dataset's folder in nnUNet_raw"
MODEL_ADVICE = "restore it, for example from the dataset's folder in nnUNet_preprocessed"
STOCK_NETWORKS = "dynamic_network_architectures."
WRONG_SHAPE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError)
"""What nnU-Net raises for plans that are not of the form it writes."""

Side = Annotated[int, Field(ge=1)]
Length = Annotated[float, Field(gt=0)]


def _order_of_axes(axes: list[int]) -> list[int]:
    if sorted(axes) != [0, 1, 2]:
        raise ValueError("Input should be 0, 1 and 2 in any order")
    return axes


Axes = Annotated[list[int], AfterValidator(_order_of_axes)]


class _Part(BaseModel):
    """Part of a file of nnU-Net's: the entries that are used here; there may be others."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Architecture(_Part):
    network_class_name: StrictStr
    arch_kwargs: dict[str, Any]
    requires_import: Annotated[list[StrictStr], Field(alias="_kw_requires_import")]


class _Configuration(_Part):
    data_identifier: StrictStr
    preprocessor_name: StrictStr
    batch_size: Annotated[int, Field(ge=1)]
    patch_size: Annotated[list[Side], Field(min_length=2, max_length=3)]
    spacing: Annotated[list[Length], Field(min_length=2, max_length=3)]
    normalization_schemes: Annotated[list[StrictStr], Field(min_length=1)]
    use_mask_for_norm: list[bool]
    resampling_fn_data: StrictStr
    resampling_fn_seg: StrictStr
    resampling_fn_probabilities: StrictStr
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_seg_kwargs: dict[str, Any]
    resampling_fn_probabilities_kwargs: dict[str, Any]
    batch_dice: bool
    architecture: _Architecture

    @model_validator(mode="after")
    def _lengths_agree(self) -> "_Configuration":
        if len(self.spacing) != len(self.patch_size):
            raise ValueError(f"patch_size has {len(self.patch_size)} axes, but spacing {len(self.spacing)}")
        if len(self.use_mask_for_norm) != len(self.normalization_schemes):
            raise ValueError("use_mask_for_norm and normalization_schemes speak of different numbers of channels")
        strides = self.architecture.arch_kwargs.get("strides", [])
        if any(isinstance(stride, list) and len(stride) != len(self.patch_size) for stride in strides):
            raise ValueError(f"architecture.arch_kwargs.strides do not all have {len(self.patch_size)} axes")
        return self


class _Plans(_Part):
    dataset_name: StrictStr
    plans_name: StrictStr
    image_reader_writer: StrictStr
    transpose_forward: Axes
    transpose_backward: Axes
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]
    configurations: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class _Description(_Part):
    channel_names: dict[str, StrictStr] | None = None
    modality: dict[str, StrictStr] | None = None  # what version 1 of nnU-Net called them
    file_ending: Annotated[str, Field(pattern=r"^\.\w")]
    labels: dict[str, int | list[int]]


def read_plans(path: Path, configuration: str | None = None, advice: str = MODEL_ADVICE) -> PlansManager:
    """Read plans and check that nnU-Net can use them.

    Args:
        path: plans.json of a model, or nnUNetPlans.json of preprocessed data.
        configuration: that is to be used; None checks none.
        advice: how to get a good file.

    Raises:
        UserError: missing or damaged file, another form than nnU-Net's, or no such configuration.
    """
    content = _read(path, _Plans, "plans of nnU-Net", advice)
    if configuration is not None and configuration not in content["configurations"]:
        raise UserError(
            f"{path} has no configuration {configuration!r}.{did_you_mean(configuration, content['configurations'])}"
        )
    manager = PlansManager(content)
    if configuration is None:
        return manager
    try:
        found = manager.get_configuration(configuration)
        validate(_Configuration, found.configuration, str(path), "configurations", configuration)
        _look_up_names(manager, found)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}: {advice}.") from None
    except WRONG_SHAPE as error:
        mistake = f"{path} holds no configuration {configuration!r} of nnU-Net ({_reason(error)})"
        raise UserError(f"{mistake}: {advice}.") from error
    return manager


def _look_up_names(plans: PlansManager, configuration: ConfigurationManager) -> None:
    """Do what nnU-Net does only when it needs it: find classes and functions by their names, and build the network."""
    for thing in (plans.image_reader_writer_class, configuration.preprocessor_class, configuration.resampling_fn_data):
        if not callable(thing):
            raise TypeError(f"{thing} is no class or function")
    if configuration.network_arch_class_name.startswith(STOCK_NETWORKS):
        with torch.device("meta"):  # without memory
            get_network_from_plans(
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
                1,
                2,
                allow_init=False,
            )


def read_description(path: Path, advice: str = MODEL_ADVICE) -> dict[str, Any]:
    """Read a dataset.json and check that nnU-Net can use it.

    Args:
        path: of the file.
        advice: how to get a good file.

    Raises:
        UserError: missing or damaged file, or another form than nnU-Net's.
    """
    content = _read(path, _Description, "dataset.json of nnU-Net", advice)
    if not content.get("channel_names") and not content.get("modality"):
        raise UserError(f"{path} is no dataset.json of nnU-Net: it names no channel as channel_names: {advice}.")
    try:
        LabelManager(content["labels"], content.get("regions_class_order"))
    except WRONG_SHAPE as error:
        raise UserError(f"{path} declares labels that nnU-Net refuses ({_reason(error)}): {advice}.") from error
    return content


def check_channels(
    plans: PlansManager, configuration: str, description: Mapping[str, Any], path: Path, advice: str = MODEL_ADVICE
) -> None:
    """Check that plans and dataset.json speak of the same channels.

    Args:
        plans: as read by :func:`read_plans`.
        configuration: of the plans.
        description: as read by :func:`read_description`.
        path: file of the plans.
        advice: how to get a good file.

    Raises:
        UserError: the plans know more or fewer channels, or how one of them is normalized is missing.
    """
    channels = len(description.get("modality") or description["channel_names"])
    known = plans.foreground_intensity_properties_per_channel
    planned = len(plans.get_configuration(configuration).normalization_schemes)
    if planned != channels or any(str(channel) not in known for channel in range(channels)):
        raise UserError(
            f"{path} was made for other channels than the {channels} of the {DESCRIPTION_FILE} beside it: {advice}."
        )


def _read(path: Path, shape: type[_Part], kind: str, advice: str) -> dict[str, Any]:
    try:
        content = load_json_object(path)
        validate(shape, content, f"{path} is no {kind}")
    except UserError as error:
        reason = str(error).removesuffix(".").removesuffix("; correct it").removesuffix("; see that it is there")
        raise UserError(f"{reason}: {advice}.") from None
    return content


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text} is missing" if isinstance(error, KeyError) else text or type(error).__name__
