"""Files of a decoder's adapters: what starts from them, what does not, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from synfoc3d.checkpoint import load, rebuild_foundation, save_atomic
from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.lora import trainable_state
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.networks.weights import decoder_adapters
from synfoc3d.networks.weights.decoder_adapters import content_of
from synfoc3d.networks.weights.known import embedded_weights, file_hash
from synfoc3d.networks.weights.provenance import provenance

PATCH = (5, 20, 28)
FITTING = {"rank": 3, "network": "compact", "base_sha256": file_hash(embedded_weights())}


def settings_of(**changes: Any) -> FoundationSettings:
    return FoundationSettings(**{"name": "compact", "image_size": 32, "lora_rank": 3} | changes)


def build(**changes: Any) -> tuple[PropagatingFoundation, dict[str, Any]]:
    settings = arranged(settings_of(**changes), "propagation", PATCH)
    network, identity = build_foundation(settings, 3, PATCH)
    assert isinstance(network, PropagatingFoundation)
    return network.eval(), identity


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Adapters that do something, as exact in half precision as they are."""
    torch.manual_seed(5)
    fresh = build(adapters="none")[0].adapter_state()
    return {name: torch.randint(-8, 9, weight.shape) / 64 for name, weight in fresh.items()}


def write(weights: dict[str, torch.Tensor], file: Path, **changes: Any) -> str:
    torch.save(content_of(weights, **FITTING) | changes, file)
    return str(file)


@pytest.fixture
def file(weights: dict[str, torch.Tensor], tmp_path: Path) -> str:
    return write(weights, tmp_path / "adapters.pth")


@pytest.fixture
def shipped(weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the package bring adapters for compact."""
    monkeypatch.setattr(decoder_adapters, "SHIPPED", tmp_path)
    (tmp_path / "compact").mkdir()
    return Path(write(weights, tmp_path / "compact" / "propagation_compact.pth"))


def volume() -> torch.Tensor:
    return torch.rand(1, 1, *PATCH, generator=torch.Generator().manual_seed(1))


def test_decoder_and_its_twin_start_from_the_file(file: str, weights: dict[str, torch.Tensor]) -> None:
    network, identity = build(adapters=file)
    for stream in (network, network.twin()):
        state = stream.adapter_state()
        assert all(torch.equal(state[name], weight) for name, weight in weights.items())
        assert all(parameter.requires_grad for name, parameter in stream.decoder.named_parameters() if name in weights)
    assert identity["adapters"] == {"file": file, "sha256": file_hash(Path(file))}


def test_streams_of_a_file_answer_alike_and_learn_apart(file: str) -> None:
    network, _ = build(adapters=file)
    twin = network.twin()
    assert torch.equal(network(volume()), twin(volume()))
    assert not torch.equal(network(volume()), build(adapters="none")[0](volume()))
    name = next(iter(network.adapter_state()))
    network.adapter_state()[name].add_(1)
    assert not torch.equal(network.adapter_state()[name], twin.adapter_state()[name])


def test_shipped_adapters_are_the_default_and_can_be_left_aside(shipped: Path) -> None:
    assert build()[1]["adapters"] == {"file": str(shipped), "sha256": file_hash(shipped)}
    assert build(adapters="none")[1]["adapters"] is None


def test_shipped_adapters_that_do_not_fit_are_left_aside(shipped: Path, tmp_path: Path) -> None:
    assert build(lora_rank=2)[1]["adapters"] is None
    base = torch.load(embedded_weights(), weights_only=True)
    torch.save({name: weight.float() for name, weight in base.items()}, tmp_path / "other.pth")
    assert build(checkpoint=str(tmp_path / "other.pth"))[1]["adapters"] is None


def test_frozen_network_stays_what_it_is(file: str) -> None:
    with_file, without = (build(adapters=given)[0].network.state_dict() for given in (file, "none"))
    own = {name for name in with_file if "mask_decoder" in name or "image_encoder" in name}
    assert all(torch.equal(with_file[name], without[name]) for name in own)


@pytest.mark.parametrize("arrangement", ["slices", "canvas"])
def test_networks_of_other_methods_are_the_same_with_and_without_shipped_adapters(
    arrangement: str, shipped: Path
) -> None:
    states = []
    for present in (True, False):
        if not present:
            shipped.unlink()
        torch.manual_seed(3)
        network, identity = build_foundation(settings_of(arrangement=arrangement, image_size=64), 3, PATCH)
        assert "adapters" not in identity
        states.append(network.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_trained_network_is_rebuilt_without_the_file(file: str, tmp_path: Path) -> None:
    network, identity = build(adapters=file)
    part = {
        "students": {"foundation": trainable_state(network, include_base=identity["in_checkpoint"])},
        "settings": {"foundation": settings_of(adapters=file, arrangement="propagation").model_dump(mode="json")},
        "foundation": identity,
    }
    save_atomic({"trainer_name": "T", "synfoc3d": part}, tmp_path / "a.pth")
    Path(file).unlink()
    assert torch.equal(rebuild_foundation(load(tmp_path / "a.pth"), 3)(volume()), network(volume()))


def test_unknown_adapters_may_have_seen_anything(file: str) -> None:
    identity = build(adapters=file)[1]
    said = [provenance(settings_of(adapters=given).model_dump(), identity, "Dataset001_A") for given in (file, None)]
    assert said[0] is not None and said[1] is not None
    assert said[0].seen == "unknown" and "adapters.pth was trained on is not known" in said[0].trained_on
    assert said[1].seen == "no"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": 4}, r"has adapters of rank 4, the network 3: set foundation.lora_rank=4\.$"),
        ({"network": "lite_medsam"}, r"adapts the decoder of lite_medsam, not of compact: give adapters of the same"),
        ({"base_sha256": "ab"}, r"adapts weights of SHA-256 ab, but the network has others, \w{64}: leave foundation."),
        ({"rank": None}, r"holds no adapters of a decoder; give a file of synfoc3d pretrain --objective propagation"),
        ({"adapters": {}}, r"The adapters do not fit the decoder \(\d+ differ, for example .*\.weight\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    changes: dict[str, Any], sentence: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = write(weights, tmp_path / "x.pth", **changes)
    with pytest.raises(UserError, match=sentence):
        build(adapters=file)


def test_file_with_infinite_weights_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = next(iter(weights))
    file = write(weights | {name: weights[name] / 0}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"has NaN or infinity in weights: {re.escape(name)}"):
        build(adapters=file)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off"])
def test_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth (do not exist or are no file; check|cannot be read; give)"):
        build(adapters=str(file))


def test_weights_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"compact\.pth holds no adapters of a decoder"):
        build(adapters=str(embedded_weights()))


@pytest.mark.parametrize("given", ["none", "x.pth"])
def test_adapters_are_of_propagation_alone(given: str) -> None:
    with pytest.raises(UserError, match=r"foundation.adapters is of nnUNetTrainerECT alone: leave it out\."):
        arranged(settings_of(adapters=given), "slices", PATCH)
