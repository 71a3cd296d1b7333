"""Networks that answer with probabilities on nnU-Net's grid, so that nnU-Net's sliding window can use them."""

from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from synfoc3d.in_plane import in_plane_size, resize_in_plane
from synfoc3d.methods.base import full_resolution
from synfoc3d.networks.slicewise import SlicewiseFoundation, intensity_range, resolve_range, to_unit


def on_net_grid(foundation: SlicewiseFoundation, image: Tensor, case_range: Tensor) -> Tensor:
    """Logits of the foundation network, resampled to the conventional network's grid.

    Args:
        foundation: the slice-wise network.
        image: (B, C, [D,] H, W), normalised by nnU-Net.
        case_range: (B, C, 2), intensity range of each whole case.

    Returns:
        (B, K, [D,] H, W) logits, bilinear in-plane from the low-resolution grid.
    """
    logits = foundation(to_unit(image, resolve_range(foundation.intensity, case_range, image)))
    return resize_in_plane(logits, in_plane_size(image), "bilinear")


class CaseProbabilities(nn.Module):
    """Softmax probabilities of the foundation network, or of the mean of both networks.

    ``case_range`` (C, 2) must be set from the whole case before its patches are given, so that tiles agree.

    Args:
        foundation: the slice-wise network.
        conventional: nnU-Net's network for the ensemble, or None for the foundation network alone.
    """

    def __init__(self, foundation: SlicewiseFoundation, conventional: nn.Module | None = None) -> None:
        super().__init__()
        self.foundation = foundation
        self.conventional = conventional
        self.case_range: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, [D,] H, W) normalised image -> (B, K, [D,] H, W) probabilities."""
        assert self.case_range is not None, "the case's intensity range was not set"
        value_range = self.case_range.to(image.device).expand(len(image), -1, -1)
        probabilities = on_net_grid(self.foundation, image, value_range).float().softmax(1)
        if self.conventional is None:
            return probabilities
        return (probabilities + full_resolution(self.conventional(image)).float().softmax(1)) / 2


class Predictor(nnUNetPredictor):
    """nnU-Net's predictor, which tells a :class:`CaseProbabilities` network the range of the case it is about to see.

    For such a network the returned "logits" are probabilities: the sliding window averages probabilities, and the
    class is their argmax after resampling to the scan's own grid.
    """

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Any:  # noqa: ANN401 - as in nnU-Net
        """(C, D, H, W) preprocessed case -> (K, D, H, W)."""
        if isinstance(self.network, CaseProbabilities):
            self.network.case_range = torch.from_numpy(intensity_range(input_image.cpu().numpy()))
        return super().predict_sliding_window_return_logits(input_image)
