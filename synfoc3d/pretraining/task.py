"""What a pre-training trains, on what, and what it leaves behind."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Generator, Tensor, nn

from synfoc3d.pretraining.settings import RunSettings

Network = TypeVar("Network", bound=nn.Module)
Batch = TypeVar("Batch")


class Task(ABC, Generic[Network, Batch]):
    """An objective of a pre-training.

    Args:
        settings: everything the run reads, of the objective's own class.

    Attributes:
        settings: the same.
        panels: titles of the curves, by the names of the losses.
        file_name: of what is left behind.
        images_per_step: how many images a step shows.
    """

    settings: RunSettings
    panels: ClassVar[Mapping[str, str]]
    file_name: str
    images_per_step: int

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    @abstractmethod
    def build(self, start: Path | None) -> tuple[Network, str | None]:
        """Build the network on the CPU; what trains of it is what needs gradients.

        Args:
            start: weights to start from; None are the objective's own start.

        Returns:
            The network, and the SHA-256 of the file it starts from, None for random weights.
        """

    def copy(self, network: Network) -> Network:
        """Make a network that is equal, for the average of what trains."""
        return copy.deepcopy(network)

    @abstractmethod
    def draw(self, seed: int, step: int) -> Batch:
        """Generate the batch of one step."""

    @abstractmethod
    def compute_losses(self, network: Network, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Return what is minimized under ``loss``, and its parts: scalars.

        Args:
            network: as built, on any device.
            batch: as drawn.
            generator: source of the prompts, on the CPU.
        """

    @abstractmethod
    def content(self, network: Network) -> dict[str, Any]:
        """Return what the file that is left behind holds."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the record says of the network."""
