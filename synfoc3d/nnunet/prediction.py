"""Predict a preprocessed case with a conventional or a foundation network, on nnU-Net's grid."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from synfoc3d.config import Precision
from synfoc3d.losses.label_space import LabelSpace
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.in_plane import in_plane_size, resize_in_plane
from synfoc3d.networks.intensity import intensity_range, patch_range, resolve_range, to_unit
from synfoc3d.networks.precision import autocast
from synfoc3d.networks.prompts import Points
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.nnunet.labels import label_space
from synfoc3d.nnunet.sliding_window import OnProgress, SliceWindow, Tile, no_progress, pad_to_tile, segment_slices
from synfoc3d.nnunet.volume_size import volume_size
from synfoc3d.nnunet.walk import walk


def on_net_grid(foundation: Arrangement, image: Tensor, value_range: Tensor) -> Tensor:
    """Resample logits of the foundation network to the conventional network's grid.

    Args:
        foundation: the network.
        image: (B, C, [D,] H, W), normalized by nnU-Net.
        value_range: (B, C, 2), what becomes 0 and 1 for the network.

    Returns:
        (B, K, [D,] H, W) logits, bilinear in-plane from the low-resolution grid.
    """
    return resize_in_plane(foundation(to_unit(image, value_range)), in_plane_size(image), "bilinear")


class CasePredictor:
    """Segments preprocessed cases of one configuration.

    Args:
        plans: nnU-Net's plans.
        configuration: ``2d`` or ``3d_fullres``.
        dataset_json: nnU-Net's description of the dataset.
        mirror_axes: axes mirrored in training, as nnU-Net counts them; None for none.
        device: where the networks compute.
        step_size: step of the sliding window as a share of the patch, in (0, 1].
        mirroring: average over the mirrored patches.
        precision: number format; None is nnU-Net's choice, float16 on cuda and float32 elsewhere.
    """

    def __init__(
        self,
        plans: PlansManager,
        configuration: str,
        dataset_json: dict[str, Any],
        *,
        mirror_axes: Sequence[int] | None,
        device: torch.device,
        step_size: float = 0.5,
        mirroring: bool = True,
        precision: Precision | None = None,
    ) -> None:
        self.configuration = plans.get_configuration(configuration)
        self.plans = plans
        self.labels = label_space(plans.get_label_manager(dataset_json))
        self.device = device
        self.step_size = step_size
        self.mirror_axes = tuple(mirror_axes or ()) if mirroring else ()
        self.precision: Precision = precision or ("float16" if device.type == "cuda" else "float32")
        with contextlib.redirect_stdout(io.StringIO()):  # tells about a default that is not ours to change
            self._volumes = _VolumePredictor(step_size, use_mirroring=mirroring, device=device, allow_tqdm=False)
        self._volumes.manual_initialization(
            nn.Identity(),
            plans,
            self.configuration,
            None,
            dataset_json,
            "",
            tuple(mirror_axes) if mirror_axes else None,
        )

    @torch.inference_mode()
    def conventional(self, network: nn.Module, image: Tensor, on_progress: OnProgress = no_progress) -> Tensor:
        """Compute the logits of nnU-Net's network, equal to those of nnU-Net's own predictor.

        Args:
            network: maps (B, C, [D,] H, W) to logits of the same size.
            image: (C, D, H, W) preprocessed case, on the CPU.
            on_progress: told the share of the work that was done.

        Returns:
            (K, D, H, W) float16 logits on the CPU.
        """
        network = network.to(self.device).eval()
        patch = self.configuration.patch_size
        with autocast(self.precision, self.device.type, keep_casts=True):
            if len(patch) == 3:
                return self._volumes.predict(network, image, on_progress)
            window = SliceWindow(tuple(patch), self.step_size, self.mirror_axes, torch.half)
            return segment_slices(
                lambda tiles, _: network(tiles),
                image,
                window,
                num_channels=self.labels.num_channels,
                device=self.device,
                on_progress=on_progress,
            )

    @torch.inference_mode()
    def foundation(
        self,
        network: Arrangement,
        image: Tensor,
        on_progress: OnProgress = no_progress,
        points: Points | None = None,
    ) -> Tensor:
        """Compute the probabilities of the foundation network.

        Where it sees slices one by one, it gets each tile of a slice once; one that carries masks through a volume gets
        the whole case; else patches, as the conventional network.

        Args:
            network: in any arrangement.
            image: (C, D, H, W) preprocessed case, on the CPU.
            on_progress: told the share of the work that was done.
            points: of a network that takes prompts: where each structure of the label space is, None for one that is
                not there; None altogether asks for all of them by the center.

        Returns:
            (K, D, H, W) float16 probabilities on the CPU: mean over tiles and mirrored versions, of slices in-plane.
        """
        network = network.to(self.device).eval()
        volumetric = len(self.configuration.patch_size) == 3
        # an axis of slices cannot be mirrored within a slice
        axes = tuple(axis - 1 for axis in self.mirror_axes if axis > 0) if volumetric else self.mirror_axes
        if isinstance(network, PropagatingFoundation):
            with autocast(self.precision, self.device.type, keep_casts=True):
                height, width = volume_size(self.plans, self.configuration)[-2:]
                return walk(
                    network,
                    image,
                    self.labels,
                    tile=(height, width),
                    mirror_axes=axes,
                    device=self.device,
                    points=points,
                    on_progress=on_progress,
                )
        if not network.independent_slices:
            patches = _PatchProbabilities(network, image, self.labels).to(self.device)
            with autocast(self.precision, self.device.type, keep_casts=True):
                return self._volumes.predict_probabilities(patches, image, on_progress)
        window = SliceWindow(tuple(self.configuration.patch_size[-2:]), self.step_size, axes, torch.float32)
        probabilities = _SliceProbabilities(network, image, window, self.labels, volumetric=volumetric)
        with autocast(self.precision, self.device.type, keep_casts=True):
            return segment_slices(
                probabilities,
                image,
                window,
                num_channels=self.labels.num_channels,
                device=self.device,
                on_progress=on_progress,
            )


class _SliceProbabilities:
    """The foundation network as the sliding window sees it, with the intensity range that the settings ask for.

    The rule "patch" refers to what was a patch in training: one slice of a tile in 2D, all of its slices in 3D.
    """

    def __init__(
        self,
        network: Arrangement,
        image: Tensor,
        window: SliceWindow,
        labels: LabelSpace,
        *,
        volumetric: bool,
    ) -> None:
        self.network, self.labels = network, labels
        self.case_range = torch.from_numpy(intensity_range(image.numpy()))
        self.column_ranges: dict[tuple[int, int], Tensor] = {}
        if volumetric and network.intensity == "patch":
            padded = pad_to_tile(image, window)[0]
            for rows, columns in window.tiles(*padded.shape[-2:]):
                self.column_ranges[rows.start, columns.start] = patch_range(padded[None, ..., rows, columns])[0]

    def __call__(self, tiles: Tensor, where: Tile) -> Tensor:
        """Segment (b, C, h, w) slices of one tile: (b, K, h, w) probabilities, float32."""
        column_range = self.column_ranges.get((where[0].start, where[1].start))
        known = self.case_range if column_range is None else column_range
        value_range = known.to(tiles.device).expand(len(tiles), -1, -1)
        if column_range is None:
            value_range = resolve_range(self.network.intensity, value_range, tiles)
        return self.labels.probabilities(on_net_grid(self.network, tiles, value_range))


class _PatchProbabilities(nn.Module):
    """The foundation network as nnU-Net's sliding window of patches sees it; what it averages are probabilities.

    Args:
        network: of the case's patches.
        image: (C, D, H, W) the whole preprocessed case, whose intensity range counts.
        labels: what the channels mean.
    """

    case_range: Tensor

    def __init__(self, network: Arrangement, image: Tensor, labels: LabelSpace) -> None:
        super().__init__()
        self.network, self.labels = network, labels
        self.register_buffer("case_range", torch.from_numpy(intensity_range(image.numpy())))

    def forward(self, patches: Tensor) -> Tensor:
        """Return the probabilities (B, K, D, H, W) of patches (B, C, D, H, W)."""
        case_range = self.case_range.expand(len(patches), -1, -1)
        value_range = resolve_range(self.network.intensity, case_range, patches)
        return self.labels.probabilities(on_net_grid(self.network, patches, value_range))


class _VolumePredictor(nnUNetPredictor):
    """nnU-Net's predictor for 3D patches, which tells how far it is."""

    def predict(self, network: nn.Module, image: Tensor, on_progress: OnProgress) -> Tensor:
        """Segment a (C, D, H, W) preprocessed case: (K, D, H, W) logits on the CPU."""
        self.network = network
        self.on_progress = on_progress
        return self.predict_sliding_window_return_logits(image).cpu()

    def predict_probabilities(self, network: nn.Module, image: Tensor, on_progress: OnProgress) -> Tensor:
        """Average what a network gives over nnU-Net's patches and mirrored versions, with its weights, in float32.

        nnU-Net sums in float16, in which the smallest weights, times a probability, are rounded to nothing.

        Args:
            network: gives probabilities (1, K, D, H, W).
            image: (C, D, H, W) preprocessed case, on the CPU.
            on_progress: told the share of the work that was done.

        Returns:
            (K, D, H, W) float16 on the CPU.
        """
        self.network, self.on_progress = network, on_progress
        patch = tuple(self.configuration_manager.patch_size)
        padded, inside = pad_nd_image(image, patch, "constant", {"value": 0}, True, None)
        weight = compute_gaussian(patch, 1 / 8, 10, torch.float32, torch.device("cpu"))
        weights = torch.zeros(padded.shape[1:])
        total = torch.zeros((self.label_manager.num_segmentation_heads, *padded.shape[1:]))
        for where in self._internal_get_sliding_window_slicers(padded.shape[1:]):
            answer = self._internal_maybe_mirror_and_predict(padded[where][None].to(self.device))[0]
            total[where] += answer.float().cpu() * weight
            weights[where[1:]] += weight
        return (total / weights).half()[(slice(None), *inside[1:])]

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> list:
        slicers = super()._internal_get_sliding_window_slicers(image_size)
        self.share = 1 / len(slicers)
        return slicers

    def _internal_maybe_mirror_and_predict(self, x: Tensor) -> Tensor:
        prediction = super()._internal_maybe_mirror_and_predict(x)
        self.on_progress(self.share)
        return prediction
