"""What the networks of a SynFoC training say about a case, patch by patch as in a training step."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor, nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.layout import fold_folder
from synfoc3d.inference.models import ModelChoice, check_files, conventional_with
from synfoc3d.losses.label_space import LabelSpace
from synfoc3d.methods.confidence import Structures
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.networks.intensity import intensity_range, resolve_range, to_unit
from synfoc3d.networks.lora import merge
from synfoc3d.networks.precision import autocast
from synfoc3d.nnunet.case_files import ModelInfo
from synfoc3d.nnunet.labels import label_space
from synfoc3d.nnunet.sliding_window import SLICES_AT_ONCE

JUDGES = ("conventional", "conventional_teacher", "foundation_teacher")
Place = tuple[slice, ...]
Judge = Literal["student", "teacher", "foundation", "foundation_low"]


class PatchLabels(NamedTuple):
    """What the networks say about one patch, hard labels as int32.

    The conventional ``student`` and ``teacher`` (d, h, w) on the net grid; the foundation teacher (d, s, s) on its own
    low-resolution grid as ``foundation_low``, and its probabilities' interpolation to the net grid as ``foundation``.
    """

    student: Tensor
    teacher: Tensor
    foundation: Tensor
    foundation_low: Tensor


@dataclass(frozen=True)
class Opinions:
    """What the networks say about a case.

    Attributes:
        patches: labels of each patch.
        places: where each patch lies in the padded case: slices, rows and columns.
        inside: where the case lies in the padded case.
    """

    patches: Sequence[PatchLabels]
    places: Sequence[Place]
    inside: Place

    def stacked(self, judge: Judge) -> Tensor:
        """Return the labels of all patches as a volume (1, n, h, w), the slices of one patch after the other's."""
        return torch.cat([getattr(patch, judge) for patch in self.patches])[None]

    def on_case(self, judge: Judge) -> Tensor:
        """Return the labels (D, H, W) of the preprocessed case; where patches overlap, those of the last one."""
        size = [max(place[axis].stop for place in self.places) for axis in range(3)]
        labels = torch.zeros(size, dtype=torch.int32)
        for patch, place in zip(self.patches, self.places, strict=True):
            labels[place] = getattr(patch, judge)
        return labels[self.inside]


@dataclass(frozen=True)
class Judges:
    """The networks whose agreement is self-mutual confidence, in evaluation mode.

    Attributes:
        student: the conventional student.
        teacher: the conventional teacher.
        foundation_teacher: the foundation teacher.
        patch_size: of the configuration, two or three axes, in voxels.
        labels: what the channels of the networks mean.
        structures: the classes (or regions) of each structure that confidence is measured on.
        device: where the networks are.
    """

    student: nn.Module
    teacher: nn.Module
    foundation_teacher: Arrangement
    patch_size: tuple[int, ...]
    labels: LabelSpace
    structures: Structures
    device: torch.device

    @torch.inference_mode()
    def opinions(self, image: Tensor) -> Opinions:
        """Label the patches that cover a preprocessed case (C, D, H, W), with as little overlap as possible."""
        volumetric = len(self.patch_size) == 3
        size = self.patch_size if volumetric else (image.shape[1], *self.patch_size)
        padded, inside = pad_nd_image(image, size, "constant", {"value": 0}, True, None)
        case_range = torch.from_numpy(intensity_range(image.numpy())).to(self.device)
        places = list(_cover(tuple(padded.shape[1:]), size))
        patches = []
        for place in places:
            part = padded[(slice(None), *place)]
            # each slice is a patch in 2D; the networks get some at once
            batches = [part[None]] if volumetric else part.transpose(0, 1).split(SLICES_AT_ONCE[self.device.type])
            labels = [self._label(batch.to(self.device), case_range) for batch in batches]
            patches.append(PatchLabels(*(torch.cat(of_judge) for of_judge in zip(*labels, strict=True))))
        return Opinions(patches, places, inside[1:])

    def _label(self, patches: Tensor, case_range: Tensor) -> PatchLabels:
        """Label patches (B, C, [d,] h, w); the range (C, 2) is that of their case."""
        foundation = self.foundation_teacher
        value_range = resolve_range(foundation.intensity, case_range.expand(len(patches), -1, -1), patches)
        with autocast("float16" if self.device.type == "cuda" else "float32", self.device.type, keep_casts=True):
            student, teacher = self.student(patches), self.teacher(patches)
            low = self.labels.probabilities(foundation(to_unit(patches, value_range)))
        on_net_grid = resize_in_plane(low, in_plane_size(patches), "bilinear")
        conventional = [_slices(self.labels.labels_of_logits(answer)) for answer in (student, teacher)]
        return PatchLabels(*conventional, *(_slices(self.labels.labels(answer)) for answer in (on_net_grid, low)))


def _cover(shape: tuple[int, ...], size: tuple[int, ...]) -> Iterator[Place]:
    for corner in itertools.product(*compute_steps_for_sliding_window(shape, size, 1.0)):
        yield tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))


def _slices(labels: Tensor) -> Tensor:
    """Flatten (B, [d,] h, w) to (B * d, h, w) int32 on the CPU."""
    return labels.flatten(0, -3).to("cpu", torch.int32)


def _check_judges(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a training that lacks one of the networks whose opinions are compared."""
    section = checkpoints.section_of(checkpoint)
    kept = {*section["students"], *(name.partition(".")[0] for name in section["method"])}
    missing = [name for name in JUDGES if name not in kept]
    if missing:
        raise UserError(
            f"rank compares a conventional network with its teacher and with a foundation network's teacher, but "
            f"{checkpoint['trainer_name']} trains no {' and no '.join(missing)}: give a training of "
            "nnUNetTrainerSynFoC with -tr."
        )


def load_judges(choice: ModelChoice, info: ModelInfo, checkpoint: Mapping[str, Any], device: torch.device) -> Judges:
    """Load the networks of a training; LoRA is merged.

    Args:
        choice: which training.
        info: its plans and dataset.
        checkpoint: its content.
        device: where the networks are to compute.

    Raises:
        UserError: the training kept no such networks, or learned other labels than its dataset.json declares.
    """
    _check_judges(checkpoint)
    check_files(fold_folder(choice.folder(), choice.folds[0]) / choice.checkpoint, checkpoint, info)
    labels = label_space(info.plans.get_label_manager(info.dataset_json))
    heads = labels.num_channels

    def conventional(name: str) -> nn.Module:
        state = checkpoints.network_state(checkpoint, name)
        return conventional_with(state, choice.trainer, info, checkpoint).to(device).eval()

    foundation_teacher = checkpoints.rebuild_foundation(checkpoint, heads, "foundation_teacher")
    merge(foundation_teacher)
    settings = checkpoints.section_of(checkpoint)["settings"]["method"]
    return Judges(
        conventional("conventional"),
        conventional("conventional_teacher"),
        foundation_teacher.to(device).eval(),
        tuple(info.plans.get_configuration(info.configuration).patch_size),
        labels,
        settings.get("structures") or labels.structures,
        device,
    )
