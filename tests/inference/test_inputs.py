"""Which scans are segmented, and where their masks go."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.inference.inputs import Job, find_jobs, is_finished, select_part

ENDING = ".nii.gz"


@pytest.fixture
def scans(tmp_path):
    """Return a function that creates files and returns their folder."""

    def create(*names):
        folder = tmp_path / "scans"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).touch()
        return folder

    return create


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        find_jobs(*arguments)
    return str(caught.value)


def test_channels_of_a_case_belong_together(scans, tmp_path):
    folder = scans("b_0000.nii.gz", "a_0001.nii.gz", "a_0000.nii.gz", "notes.txt", ".hidden_0000.nii.gz")
    first, second = find_jobs(folder, tmp_path / "masks", ENDING)
    assert (first.case, [file.name for file in first.files]) == ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])
    assert (second.case, second.target) == ("b", tmp_path / "masks" / "b")


def test_one_file_brings_the_other_channels(scans, tmp_path):
    folder = scans("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    (job,) = find_jobs(folder / "a_0001.nii.gz", tmp_path / "masks", ENDING)
    assert (job.case, len(job.files), job.target) == ("a", 2, tmp_path / "masks" / "a")


def test_one_file_may_be_written_to_a_file(scans, tmp_path):
    (job,) = find_jobs(scans("patient.nii.gz") / "patient.nii.gz", tmp_path / "result.nii.gz", ENDING)
    assert (job.case, job.target) == ("patient", tmp_path / "result")


@pytest.mark.parametrize(
    ("name", "output"),
    [("patient.nii.gz", ""), ("patient.nii.gz", "patient.nii.gz"), ("a_0000.nii.gz", "a_0001.nii.gz")],
)
def test_mask_in_the_place_of_its_scan_is_refused(scans, monkeypatch, name, output):
    folder = scans("patient.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz")
    monkeypatch.chdir(folder)
    message = refusal(Path(name), folder / output, ENDING)
    assert message.endswith("would replace the scan itself: give another place with -o.")


def test_mask_may_lie_beside_its_scan(scans):
    folder = scans("a_0000.nii.gz")
    (job,) = find_jobs(folder / "a_0000.nii.gz", folder, ENDING)
    assert job.target == folder / "a"


def test_missing_input_is_refused(tmp_path):
    assert "does not exist: give a folder of images" in refusal(tmp_path / "nowhere", tmp_path, ENDING)


def test_folder_without_images_is_refused(scans, tmp_path):
    assert "holds no images named like case_0000.nii.gz" in refusal(scans(), tmp_path, ENDING)


def test_image_without_channel_number_is_refused(scans, tmp_path):
    message = refusal(scans("a_0000.nii.gz", "patient.nii.gz"), tmp_path, ENDING)
    assert message.endswith("patient.nii.gz has no channel number: name the images like case_0000.nii.gz.")


def test_file_of_another_format_is_refused(scans, tmp_path):
    assert "scan.mha is not a .nii.gz file" in refusal(scans("scan.mha") / "scan.mha", tmp_path, ENDING)


def test_folder_into_a_file_is_refused(scans, tmp_path):
    assert "is a folder, but " in refusal(scans("a_0000.nii.gz"), tmp_path / "mask.nii.gz", ENDING)


@given(st.integers(0, 30), st.integers(1, 8))
def test_parts_share_all_cases(count, parts):
    shares = [select_part(range(count), parts, part) for part in range(parts)]
    assert sorted(sum(shares, [])) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("parts", "part"), [(2, 2), (2, -1), (0, 0)])
def test_part_that_does_not_exist_is_refused(parts, part):
    with pytest.raises(UserError, match=f"-part_id {part} of -num_parts {parts} does not exist"):
        select_part([], parts, part)


@pytest.mark.parametrize(
    ("there", "probabilities", "finished"),
    [
        ([".nii.gz"], False, True),
        ([".nii.gz"], True, False),
        ([".nii.gz", ".npz", ".pkl"], True, True),
        ([], False, False),
    ],
)
def test_case_is_finished_when_all_its_files_are_there(tmp_path, there, probabilities, finished):
    for ending in there:
        (tmp_path / f"a{ending}").touch()
    assert is_finished(Job("a", (), tmp_path / "a"), ENDING, probabilities) == finished


@pytest.mark.parametrize(("there", "missing"), [([1, 2], 0), ([0, 2], 1), ([2], 0)])
def test_missing_channel_is_refused(scans, tmp_path, there, missing):
    wanted = f"a_{missing:04d}.nii.gz"
    message = refusal(scans(*(f"a_{number:04d}.nii.gz" for number in there)), tmp_path / "masks", ENDING)
    assert f"Case 'a' has {tmp_path / 'scans'}" in message and f"but no {wanted}: add that channel" in message
