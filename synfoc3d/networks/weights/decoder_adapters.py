"""Files of a mask decoder's adapters, with which ECT's decoders start; `synfoc3d pretrain` writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synfoc3d.config import NO_ADAPTERS
from synfoc3d.errors import UserError
from synfoc3d.files.checksums import compare_torch_checksums
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.networks.weights.loading import refuse_unusable

SHIPPED = Path(__file__).parent / "propagation"
KIND = "a file of synfoc3d pretrain --objective propagation"


class DecoderAdapters(NamedTuple):
    """Adapters as a file holds them.

    Attributes:
        file: where they lie.
        sha256: of the file.
        weights: float32, by their names in the decoder.
        rank: r.
        network: name of the network whose decoder they adapt.
        base_sha256: of the file with that network's weights.
    """

    file: Path
    sha256: str
    weights: dict[str, Tensor]
    rank: int
    network: str
    base_sha256: str

    def misfit(self, network: str, rank: int, base_sha256: str) -> str | None:
        """Say why they are not for a network, as half a sentence with a remedy; None where they are."""
        if self.network != network:
            return f"adapts the decoder of {self.network}, not of {network}: give adapters of the same network"
        if self.rank != rank:
            return f"has adapters of rank {self.rank}, the network {rank}: set foundation.lora_rank={self.rank}"
        if self.base_sha256 != base_sha256:
            return (
                f"adapts weights of SHA-256 {self.base_sha256}, but the network has others, {base_sha256}: leave "
                "foundation.checkpoint out, or make adapters for these with synfoc3d pretrain"
            )
        return None


def content_of(weights: Mapping[str, Tensor], rank: int, network: str, base_sha256: str | None) -> dict[str, Any]:
    """Return what a file of adapters holds: the weights in half precision, and what they belong to."""
    return {
        "adapters": {name: weight.detach().half().cpu() for name, weight in weights.items()},
        "rank": rank,
        "network": network,
        "base_sha256": base_sha256,
    }


def read_adapters(file: Path) -> DecoderAdapters:
    """Read a file of adapters on the CPU, without running code that lies in it.

    Raises:
        UserError: no such file, damaged, or of another kind.
    """
    if not file.is_file():
        raise UserError(f"The adapters {file} do not exist or are no file; check foundation.adapters.")
    try:
        compare_torch_checksums(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # many types, depending on where a file is cut or damaged
        raise UserError(f"{file} cannot be read; give {KIND} as foundation.adapters.") from error
    kinds = {"adapters": dict, "rank": int, "network": str, "base_sha256": str}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{file} holds no adapters of a decoder; give {KIND} as foundation.adapters.")
    weights = {name: weight.float() for name, weight in content["adapters"].items()}
    refuse_unusable(weights, file)
    return DecoderAdapters(file, file_hash(file), weights, content["rank"], content["network"], content["base_sha256"])


def shipped_adapters(network: str) -> Path | None:
    """Find the file of adapters that ships inside this package for a network; None where there is none."""
    file = SHIPPED / network / f"propagation_{network}.pth"
    return file if file.is_file() else None


def find_adapters(given: str | None, network: str, rank: int, base_sha256: str | None) -> DecoderAdapters | None:
    """Find the adapters that a decoder starts from.

    Args:
        given: the setting ``foundation.adapters``: ``none``, a file, or None for the shipped ones where they fit.
        network: name of the network.
        rank: of its decoder's adapters.
        base_sha256: of the file of its weights; None for random ones.

    Raises:
        UserError: the given file cannot be read, or belongs to another network, rank or file of weights.
    """
    file = shipped_adapters(network) if given is None else Path(given)
    if file is None or given == NO_ADAPTERS:
        return None
    found = read_adapters(file)
    problem = found.misfit(network, rank, str(base_sha256))
    if problem is None:
        return found
    if given is None:
        return None
    raise UserError(f"{file} {problem}.")


def load_adapters(decoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy adapters into a decoder that has some of the same rank.

    Raises:
        UserError: they are not of such a decoder.
    """
    own = {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}
    foreign = [name for name in own.keys() | weights.keys() if not _same_shape(own.get(name), weights.get(name))]
    if foreign:
        raise UserError(
            f"The adapters do not fit the decoder ({len(foreign)} differ, for example {min(foreign)}); give {KIND} as "
            "foundation.adapters."
        )
    decoder.load_state_dict(weights, strict=False)


def _same_shape(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
