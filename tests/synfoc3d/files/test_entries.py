"""No entry of a folder is left out without a word, whichever command reads the folder."""

import os

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.entries import SHOWN, tell_left_out
from synfoc3d.files.volumes import list_images, list_labels, list_volumes
from synfoc3d.inference.inputs import find_jobs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a_0000.nii.gz").touch()
    return tmp_path / "scans"


READERS = {
    "list_labels": list_labels,
    "list_images": list_images,
    "find_jobs": lambda folder: find_jobs(folder, folder.parent / "out", ".nii.gz"),
}


@pytest.fixture(params=READERS)
def read(request):
    """The ways in of evaluate; of import, preprocess, split and doctor; and of predict and rank."""
    return READERS[request.param]


class TestNamedLikeAScan:
    def test_link_to_nothing_is_refused(self, folder, read):
        (folder / "b_0000.nii.gz").symlink_to("gone.nii.gz")
        with pytest.raises(UserError, match=r"b_0000.nii.gz is a link to gone.nii.gz, where no file is"):
            read(folder)

    def test_loop_of_links_is_refused(self, folder, read):
        (folder / "b_0000.nii.gz").symlink_to("c_0000.nii.gz")
        (folder / "c_0000.nii.gz").symlink_to("b_0000.nii.gz")
        with pytest.raises(UserError, match=r"b_0000.nii.gz is a link to c_0000.nii.gz, where no file is"):
            read(folder)

    def test_folder_is_refused(self, folder, read):
        (folder / "b_0000.nii.gz").mkdir()
        with pytest.raises(UserError, match=r"b_0000.nii.gz is named like a scan but is a folder: take the scan out"):
            read(folder)

    def test_pipe_is_refused(self, folder, read):
        os.mkfifo(folder / "b_0000.nii.gz")
        with pytest.raises(UserError, match=r"b_0000.nii.gz is named like a scan but is no regular file"):
            read(folder)

    def test_link_to_a_file_is_a_scan(self, folder, tmp_path):
        (tmp_path / "elsewhere.nii.gz").touch()
        (folder / "b_0000.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
        assert set(list_images(folder)) == {"a", "b"}

    def test_capitals_in_the_ending_do_not_matter(self, folder):
        (folder / "b_0000.NII.GZ").touch()
        assert list_images(folder)["b"] == (folder / "b_0000.NII.GZ",)


class TestLeftOut:
    def test_other_entries_are_named(self, folder, read, caplog):
        (folder / "more").mkdir()
        for name in ("._b.nii.gz", "b.mhd", "notes.txt", "c.dcm"):
            (folder / name).touch()
        read(folder)
        assert caplog.messages == [f"Left out of {folder}: ._b.nii.gz, b.mhd, c.dcm, more/, notes.txt."]

    def test_what_belongs_to_scans_and_masks_is_not_named(self, folder, caplog):
        (folder / "a.nii.gz").touch()
        for name in ("dataset.json", "a.json", "summary.json", "domains.csv", "a.npz", "a.pkl", ".DS_Store", ".git"):
            (folder / name).touch()
        list_volumes(folder)
        assert not caplog.messages

    def test_scans_of_another_ending_are_not_left_out_by_predict(self, folder, caplog):
        for name in ("b_0000.NII.GZ", "c_0000.mha"):
            (folder / name).touch()
        assert [job.case for job in READERS["find_jobs"](folder)] == ["a", "b", "c"]
        assert not caplog.messages

    def test_results_of_no_mask_are_named(self, folder, caplog):
        (folder / "b.npz").touch()
        list_volumes(folder)
        assert caplog.messages == [f"Left out of {folder}: b.npz."]

    def test_each_folder_is_told_of_once(self, folder, caplog):
        (folder / "notes.txt").touch()
        list_labels(folder)
        list_images(folder)
        assert len(caplog.messages) == 1

    def test_long_lists_are_counted(self, folder, caplog):
        tell_left_out(folder, [folder / f"{number:03d}.dcm" for number in range(SHOWN + 5)])
        assert caplog.messages[0].endswith(f"{SHOWN - 1:03d}.dcm and 5 more.")
