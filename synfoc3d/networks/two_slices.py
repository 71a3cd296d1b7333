"""A way around wrong gradients of torch's bfloat16 convolutions on a CPU.

The gradient of the weights of a 3D convolution, with a kernel of 3 and a stride of 1 along the first axis, is whatever
lay in the memory, numbers up to 1e36 or NaN, where its input has two slices. Seen with torch 2.14 on CPUs with AVX-512
BF16. One slice, three or more, other kernels and strides along that axis, and float32, are right.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ThreeSliceConv3d(nn.Conv3d):
    """A convolution that shows two slices with a third, empty one, and cuts its answer: the same, but for the bug.

    The third slice is what the convolution's own padding puts there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, D, H, W)."""
        if x.shape[2] != 2 or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return super().forward(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :2]


def guard_two_slices(network: nn.Module) -> nn.Module:
    """Make the concerned convolutions of a network :class:`ThreeSliceConv3d`, and return it; nothing else changes.

    Args:
        network: changed in place.
    """
    for module in network.modules():
        if type(module) is not nn.Conv3d:
            continue
        if (module.kernel_size[0], module.stride[0], module.padding[0]) == (3, 1, 1):
            module.__class__ = ThreeSliceConv3d  # keeps weights, names and hooks
    return network
