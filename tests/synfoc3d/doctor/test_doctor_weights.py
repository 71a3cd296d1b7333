"""Weight files that are there, cut short, or something else."""

import hashlib
import zipfile

import pytest
import torch

from synfoc3d.doctor.weights import check_weight_file, check_weight_folder, check_weights


@pytest.fixture
def whole(tmp_path):
    """A torch file."""
    torch.save({"weight": torch.zeros(3000)}, tmp_path / "medsam.pth")
    return tmp_path / "medsam.pth"


def test_whole_file_is_listed_with_its_hash(whole):
    finding = check_weight_file(whole)
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    assert (finding.level, finding.name) == ("ok", "medsam.pth") and digest in finding.text
    assert finding.details == {"path": str(whole), "bytes": whole.stat().st_size, "sha256": digest}


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


def test_home_may_be_chosen(whole, monkeypatch):
    (whole.parent / "checkpoints").mkdir()
    whole.rename(whole.parent / "checkpoints" / "medsam.pth")
    monkeypatch.setenv("SYNFOC3D_HOME", str(whole.parent))
    assert [finding.name for finding in check_weights()] == ["medsam.pth"]


def test_home_that_does_not_exist_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNFOC3D_HOME", str(tmp_path / "no"))
    (finding,) = check_weights()
    assert finding.level == "error" and finding.text == f"{tmp_path / 'no'} is no folder"


def test_default_home_is_in_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("SYNFOC3D_HOME", raising=False)
    monkeypatch.setattr("synfoc3d.doctor.weights.Path.home", lambda: tmp_path)
    assert f"none in {tmp_path / '.synfoc3d' / 'checkpoints'}" in check_weights()[0].text
