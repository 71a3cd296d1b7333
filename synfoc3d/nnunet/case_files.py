"""One case on its way from files to the networks' grid, and its prediction on the way back.

Both functions are run in worker processes: arguments and results can be pickled.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from synfoc3d.errors import UserError
from synfoc3d.files.intensities import check_intensities, doubt_about, only_value
from synfoc3d.files.layout import PLANS_FILE
from synfoc3d.files.origins import ScanFacts, scan_facts
from synfoc3d.files.spacing_files import lacks_spacing, no_spacing
from synfoc3d.files.volumes import check_channels
from synfoc3d.networks.prompts import Points
from synfoc3d.nnunet.export import mask_of
from synfoc3d.nnunet.readers import read_files, write_read_mask


@dataclass(frozen=True)
class ModelInfo:
    """What a model's predictions are made for.

    Attributes:
        plans: nnU-Net's plans.
        configuration: ``2d`` or ``3d_fullres``.
        dataset_json: nnU-Net's description of the dataset.
        plans_file: where the plans were read.
    """

    plans: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    plans_file: Path = Path(PLANS_FILE)

    @property
    def file_ending(self) -> str:
        """Ending of images and masks."""
        return str(self.dataset_json["file_ending"])


@dataclass(frozen=True)
class PreparedCase:
    """A preprocessed case.

    Attributes:
        image: (C, D, H, W) float32, cropped, normalized and resampled by nnU-Net.
        properties: what nnU-Net needs to put a prediction back on the scan's own grid.
        reader: nnU-Net's class that read the files.
        scan: file over which the mask is to lie; None where it is not known.
        points: where a promptable network is asked for each structure; None where it is not told.
        made_of: what tells each of its files from other ones, in order.
        doubts: sentences on what looks like a mistake in them.
    """

    image: np.ndarray
    properties: dict[str, Any]
    reader: type[BaseReaderWriter]
    scan: Path | None = None
    points: Points | None = None
    made_of: tuple[ScanFacts, ...] = ()
    doubts: tuple[str, ...] = ()


class CasePrompt(Protocol):
    """What says where the structures of one case are."""

    def place(self, files: Sequence[Path], read: np.ndarray, prepared: PreparedCase, info: ModelInfo) -> Points:
        """Return a point per structure.

        Args:
            files: of the case.
            read: (C, z, y, x) what the reader of the prepared case gave.
            prepared: the case.
            info: the model.

        Raises:
            UserError: the prompt does not fit the case.
        """


def prepare_case(files: Sequence[Path], info: ModelInfo, prompt: CasePrompt | None = None) -> PreparedCase:
    """Read the channels of one case, check them, and preprocess them as nnU-Net does.

    Args:
        files: one file per channel, in order.
        info: the model.
        prompt: what says where the structures are; None if the networks are not told.

    Raises:
        UserError: files that cannot be read or have a wrong checksum, differ from each other, hold no voxels or ones
            that nnU-Net cannot normalize, have no spacing though those of the training had one, are a single slice
            where the model needs a volume, or are not as many channels as in training; or a prompt that does not fit.
    """
    configuration = info.plans.get_configuration(info.configuration)
    check_channels(files)
    made_of = tuple(map(scan_facts, files))  # before reading: a scan that changes meanwhile is another one
    image, properties, reader = read_files(files, info.plans.image_reader_writer_class)
    channels = determine_num_input_channels(info.plans, configuration, info.dataset_json)
    names = ", ".join(map(str, files))
    if len(image) != channels:
        raise UserError(f"{names}: {len(image)} channels, but the model was trained with {channels}; give as many.")
    if not image.size:
        raise UserError(f"{names} holds no voxels, its shape (z, y, x) is {image.shape[1:]}; replace or remove it.")
    names_of = list(map(str, files)) if len(files) == channels else [names] * channels
    doubts = []
    for name, channel in zip(names_of, image, strict=True):
        check_intensities(channel[None], name)
        value = only_value(channel)
        if value is not None:
            doubts.append(doubt_about(value, name))
    if len(configuration.patch_size) == 3 and image.shape[1] == 1:
        raise UserError(f"{names} is a single slice, but {info.configuration} needs a volume; use a 2d model.")
    if reader is Tiff3DIO and lacks_spacing(files[0]) and not _counts_in_voxels(info):
        raise no_spacing(files[0], "the model was trained on scans with one")
    _check_extent(names, image.shape[1:], properties["spacing"], info)
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        image, None, properties, info.plans, configuration, info.dataset_json
    )
    prepared = PreparedCase(data.astype(np.float32, copy=False), properties, reader, files[0])
    prepared = replace(prepared, made_of=made_of, doubts=tuple(doubts))
    return prepared if prompt is None else replace(prepared, points=prompt.place(files, image, prepared, info))


def _counts_in_voxels(info: ModelInfo) -> bool:
    """Return whether the scans of the training had no spacing either, for which nnU-Net takes 1."""
    return set(info.plans.plans.get("original_median_spacing_after_transp", [1])) == {1}


def _check_extent(names: str, shape: Sequence[int], spacing: Sequence[float], info: ModelInfo) -> None:
    """Refuse a scan of which resampling to the voxels of the training would leave nothing: its lengths are wrong.

    Args:
        names: of its files.
        shape: (z, y, x).
        spacing: z, y, x in mm.
        info: the model.
    """
    target = info.plans.get_configuration(info.configuration).spacing
    axes = info.plans.transpose_forward[-len(target) :]  # the slices of a 2d model stay as they are
    for axis, wanted in zip(axes, target, strict=True):
        if round(shape[axis] * spacing[axis] / wanted) < 1:
            raise UserError(
                f"{names} has {shape[axis]} voxels of {spacing[axis]:g} mm on one axis, of which nothing is left in "
                f"voxels of {wanted:g} mm as in training; correct the spacing or the unit in its header."
            )


def write_case(
    target: Path,
    values: np.ndarray | Tensor,
    case: PreparedCase,
    info: ModelInfo,
    *,
    are_probabilities: bool,
    save_probabilities: bool = False,
    threads: int = 1,
    ending: str | None = None,
    aside: Path | None = None,
) -> None:
    """Write a prediction on the scan's own grid, whole or not at all.

    The files are written into a folder of their own and then renamed, the mask as the last one.

    Args:
        target: path of the mask, without ending.
        values: (K, D, H, W) logits, or probabilities that are averaged and resampled as such.
        case: the case, of which the image is not needed any more.
        info: the model.
        are_probabilities: which of the two ``values`` holds.
        save_probabilities: write target.npz and target.pkl as well, as nnU-Net does.
        threads: of torch's softmax.
        ending: of the mask's file; None is that of the training.
        aside: where that folder is made, on the same disk; None makes a hidden one beside the target. Where a process
            that was taken for dead may write the same case, what each of them writes must lie apart.

    Raises:
        UserError: a format that cannot say where the scan lies.
    """
    configuration = info.plans.get_configuration(info.configuration)
    nonlinearity = {"inference_nonlin": _identity} if are_probabilities else {}
    manager = info.plans.get_label_manager(info.dataset_json, **nonlinearity)
    given = (values, info.plans, configuration, manager, case.properties)
    if save_probabilities:
        mask, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            *given, return_probabilities=True, num_threads_torch=threads
        )
    else:
        mask, probabilities = mask_of(*given, threads), None
    hidden = _partial_folder(target) if aside is None else aside / uuid4().hex
    shutil.rmtree(hidden, ignore_errors=True)  # left by a kill
    hidden.mkdir()
    try:
        if probabilities is not None:
            np.savez_compressed(hidden / f"{target.name}.npz", probabilities=probabilities)
            save_pickle(case.properties, str(hidden / f"{target.name}.pkl"))
        name = f"{target.name}{ending or info.file_ending}"
        write_read_mask(hidden / name, mask, case.properties, reader=case.reader, scan=case.scan)
        for file in sorted(hidden.iterdir(), key=lambda file: file.name == name):
            os.replace(file, target.parent / file.name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def remove_partial(targets: Iterable[Path]) -> None:
    """Remove what writers that were killed have left of predictions; none of them may be at work any more.

    Args:
        targets: paths of the masks, without ending.
    """
    for target in targets:
        shutil.rmtree(_partial_folder(target), ignore_errors=True)


def _partial_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _identity(probabilities: Any) -> Any:  # noqa: ANN401 - array or tensor, as nnU-Net gives it
    return probabilities
