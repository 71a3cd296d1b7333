"""Tiny networks and batches for the tests of losses and methods."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from synfoc3d.losses.label_space import Classes, Target
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods import synfoc as synfoc_module
from synfoc3d.methods import synfoc_base as base_module
from synfoc3d.methods.base import Batch, Builder, Labeled, Unlabeled, full_resolution
from synfoc3d.methods.synfoc import SynFoC, SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBase, SynFoCBaseSettings
from synfoc3d.methods.window import Window
from synfoc3d.networks.slicewise import SlicewiseFoundation

settings.register_profile("synfoc3d", deadline=None, max_examples=50)  # busy machines pause for a second
settings.load_profile("synfoc3d")

Case = tuple[int, int, int]  # 2 or 3 dimensions, K, input channels
SHAPES = {2: (12, 20), 3: (3, 12, 20)}
IMAGE_SIZE = 64  # s = 16 lies between H and W, so that resampling goes in both directions


class TinyDecoder(nn.Module):
    """A head with nnU-Net's switch for auxiliary outputs."""

    def __init__(self, head: nn.Conv2d | nn.Conv3d, deep_supervision: bool) -> None:
        super().__init__()
        self.head = head
        self.deep_supervision = deep_supervision

    def forward(self, features: Tensor) -> Tensor | list[Tensor]:
        logits = 5 * self.head.out_channels * self.head(features)  # confident here and there
        return [logits, logits[..., ::2, ::2]] if self.deep_supervision else logits


class TinyConventional(nn.Module):
    def __init__(self, case: Case, deep_supervision: bool) -> None:
        super().__init__()
        ndim, classes, channels = case
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.encoder = convolution(channels, 5, 3, padding=1)
        self.decoder = TinyDecoder(convolution(5, classes, 1), deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        return self.decoder(self.encoder(x).tanh())


class SliceBySlice(nn.Module):
    """A 2D network applied to every slice, to compare volumes with images to the bit."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class TinyFoundation(nn.Module):
    """(N, 3, S, S) -> (N, K, S/4, S/4), with a frozen encoder."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 5, 4, stride=4).requires_grad_(False)
        self.head = nn.Conv2d(5, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.head.out_channels * self.head((4 * self.encoder(x - 0.5)).tanh())


@pytest.fixture(params=[(2, 2, 1), (2, 4, 3), (3, 2, 2), (3, 4, 1)], ids=["2d-K2", "2d-K4-rgb", "3d-K2-2ch", "3d-K4"])
def case(request: pytest.FixtureRequest) -> Case:
    """Dimensions, classes with background, input channels."""
    return request.param


@pytest.fixture(params=[(3, 2, 1), (3, 4, 2)], ids=["K2", "K4-2ch"])
def case_3d(request: pytest.FixtureRequest) -> Case:
    return request.param


def _builder(case: Case, deep_supervision: bool = False, slice_by_slice: bool = False, **foundation: Any) -> Builder:
    ndim, classes, channels = case
    labels = Classes(classes)

    def conventional() -> nn.Module:
        if slice_by_slice:
            return SliceBySlice(TinyConventional((2, classes, channels), deep_supervision))
        return TinyConventional(case, deep_supervision)

    def labeled_loss(output: Tensor | list[Tensor], labeled: Labeled) -> Tensor:
        return segmentation_loss(full_resolution(output), labeled.target, labels)

    return Builder(
        labels,
        conventional,
        lambda: SlicewiseFoundation(TinyFoundation(classes), IMAGE_SIZE, **foundation),
        labeled_loss,
        lambda weak, _: weak,
        SHAPES[ndim],
    )


@pytest.fixture(scope="session")
def make_builder() -> Callable[..., Builder]:
    """A function (case, deep_supervision, slice_by_slice, **SlicewiseFoundation's settings) -> Builder."""
    return _builder


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """A function (case, size, seed, shape) -> Batch of that many pairs."""

    def make(case: Case, size: int = 2, seed: int = 0, shape: tuple[int, ...] | None = None) -> Batch:
        ndim, classes, channels = case
        shape = shape or SHAPES[ndim]
        random = torch.Generator().manual_seed(seed)
        images = torch.randn(3, size, channels, *shape, generator=random)
        labels = torch.randint(classes, (2, size, *shape), generator=random)
        ranges = (
            torch.tensor([-1.5, 1.8]).expand(size, channels, 2) + torch.rand(size, channels, 1, generator=random) / 5
        )
        return Batch(
            Labeled(images[0], Target(labels[0]), [labels[0].unsqueeze(1)], ranges),
            Unlabeled(images[1], images[1] + 0.2 * images[2], ranges.flip(0), Target(labels[1])),
        )

    return make


@pytest.fixture(scope="session")
def make_synfoc() -> Callable[..., SynFoC]:
    """A function (case, builder settings, **method settings) -> SynFoC whose students left their teachers a little."""

    def make(case: Case, builder: dict[str, Any] | None = None, **settings: Any) -> SynFoC:
        torch.manual_seed(0)
        return _leave_teachers(SynFoC(SynFoCSettings(**settings), _builder(case, **(builder or {}))))

    return make


@pytest.fixture(scope="session")
def make_base() -> Callable[..., SynFoCBase]:
    """A function (case, **method settings) -> SynFoCBase whose student left its teacher a little."""

    def make(case: Case, **settings: Any) -> SynFoCBase:
        torch.manual_seed(0)
        return _leave_teachers(SynFoCBase(SynFoCBaseSettings(**settings), _builder(case)))

    return make


def _leave_teachers(method: Any) -> Any:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for student in method.students().values():
            for parameter in student.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random) * parameter.requires_grad)
    return method


@pytest.fixture
def use_box(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """A function that makes SynFoC and its base paste the given box (B, [D,] H, W)."""

    def use(box: Tensor) -> None:
        for module in (synfoc_module, base_module):
            monkeypatch.setattr(module, "draw_boxes", lambda *_: box)

    return use


@pytest.fixture
def use_window(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, ...], int], None]:
    """A function that makes SynFoC use the window of the given starts and size."""
    return lambda starts, size: monkeypatch.setattr(
        synfoc_module, "draw_window", lambda *_: Window(tuple(tuple(range(z, z + size)) for z in starts))
    )


@pytest.fixture
def some_box() -> Callable[[Batch], Tensor]:
    """A function that gives a box of its own to each pair of a batch."""

    def make(batch: Batch) -> Tensor:
        box = torch.zeros(batch.labeled.target.label.shape)
        for j, sample in enumerate(box):
            sample[..., 2 + j : 9, 3 : 12 + j] = 1
        return box

    return make
