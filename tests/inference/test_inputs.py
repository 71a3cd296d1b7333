"""Which scans are segmented, and where their masks go."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.inference.inputs import Job, check_output, find_jobs, is_written, remove_results, select_part

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


def test_mask_that_would_replace_the_spacing_of_its_scan_is_refused(scans):
    folder = scans("a_0000.tif", "a.json")
    message = refusal(folder / "a_0000.tif", folder / "a.tif", ".tif")
    assert f"would replace its spacing, {folder / 'a.json'}: give another place" in message


@pytest.mark.parametrize("case", ["dataset", "plans", "synfoc3d_predict"])
def test_stack_whose_mask_would_replace_a_record_is_refused(scans, tmp_path, case):
    folder = scans(f"{case}_0000.tif")
    assert f"would lie in {case}.json: rename the scan" in refusal(folder, tmp_path / "masks", ".tif")


def test_mask_that_is_named_like_a_record_is_refused(scans, tmp_path):
    folder = scans("a_0000.tif")
    assert "would lie in plans.json: rename" in refusal(folder / "a_0000.tif", tmp_path / "masks" / "plans.tif", ".tif")


def test_mask_may_lie_beside_its_scan(scans):
    folder = scans("a_0000.nii.gz")
    (job,) = find_jobs(folder / "a_0000.nii.gz", folder, ENDING)
    assert job.target == folder / "a"


def test_missing_input_is_refused(tmp_path):
    assert "does not exist: give a folder of images" in refusal(tmp_path / "nowhere", tmp_path, ENDING)


def test_folder_without_images_is_refused(scans, tmp_path):
    assert f"The folder {tmp_path / 'scans'} holds no scan; nnU-Net reads .bmp" in refusal(scans(), tmp_path, ENDING)


def test_image_without_channel_number_is_a_case_as_for_the_import(scans, tmp_path):
    jobs = find_jobs(scans("a_0000.nii.gz", "patient.nii.gz"), tmp_path, ENDING)
    assert [job.case for job in jobs] == ["a", "patient"]


def test_files_of_other_formats_are_segmented_too(scans, tmp_path):
    folder = scans("a_0000.nii.gz", "b_0000.nii", "c_0000.NII.GZ", "d_0000.mha", "e_0000.nrrd")
    jobs = find_jobs(folder, tmp_path / "masks", ENDING)
    assert [(job.case, job.ending, len(job.files)) for job in jobs] == [(case, ENDING, 1) for case in "abcde"]


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii", "scan.nrrd", "SCAN.NII.GZ"])
def test_file_of_another_format_gets_a_mask_in_the_models(scans, tmp_path, name):
    (job,) = find_jobs(scans(name) / name, tmp_path / "masks", ENDING)
    assert job.mask.name == name.split(".")[0] + ENDING


@pytest.mark.parametrize("ending", [".mha", ".nii", ".nrrd", ".gipl", ".nii.gz"])
def test_ending_of_the_output_is_the_masks(scans, tmp_path, ending):
    (job,) = find_jobs(scans("a_0000.nii.gz") / "a_0000.nii.gz", tmp_path / f"mask{ending}", ENDING)
    assert job.mask == tmp_path / f"mask{ending}"


def test_output_that_is_no_scans_name_is_a_folder(scans, tmp_path):
    (job,) = find_jobs(scans("a_0000.nii.gz") / "a_0000.nii.gz", tmp_path / "masks.v2", ENDING)
    assert job.mask == tmp_path / "masks.v2" / "a.nii.gz"


def test_mask_in_a_format_without_a_place_in_space_is_refused(scans, tmp_path):
    message = refusal(scans("a_0000.nii.gz") / "a_0000.nii.gz", tmp_path / "mask.png", ENDING)
    assert message.startswith("A .png file cannot hold the mask of ") and ".nii.gz" in message


@pytest.mark.parametrize(("trained", "file"), [(".nii.gz", "a.png"), (".png", "a.nii.gz"), (".tif", "a.png")])
def test_scan_that_the_model_cannot_take_is_named(scans, tmp_path, trained, file):
    folder = scans(f"b_0000{trained}", file)
    message = refusal(folder, tmp_path, trained)
    assert message.startswith(f"{folder / file} is no file that a model trained on {trained} takes: convert it to")
    assert refusal(folder / file, tmp_path, trained) == message


def test_channels_in_several_formats_are_refused(scans, tmp_path):
    message = refusal(scans("a_0000.nii.gz", "a_0001.mha"), tmp_path, ENDING)
    assert message == "The channels of case 'a' are in several formats (.nii.gz, .mha); use one."


def test_case_in_two_formats_is_refused(scans, tmp_path):
    assert "Case 'a' is there twice" in refusal(scans("a_0000.nii.gz", "a_0000.nii"), tmp_path, ENDING)


def test_files_beside_a_single_one_do_not_matter(scans, tmp_path):
    folder = scans(
        "a_0000.nii.gz", "a_0001.nii.gz", "a.nii.gz", "a_0000.mha", "b_0003.nii.gz", "ab_0002.nii.gz", "c.png"
    )
    (job,) = find_jobs(folder / "a_0001.nii.gz", tmp_path, ENDING)
    assert [file.name for file in job.files] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize("name", ["IM1.dcm", "DICOMDIR", "1.2.840.1"])
def test_dicom_is_told_how_to_convert(scans, tmp_path, name):
    folder = scans("readme.txt")
    (folder / "series").mkdir()
    (folder / "series" / name).write_bytes(bytes(128) + b"DICM")
    message = refusal(folder, tmp_path, ENDING)
    assert message.startswith(f"{folder} holds DICOM files, which nnU-Net does not read") and "dcm2niix" in message
    message = refusal(folder / "series" / name, tmp_path, ENDING)
    assert message.startswith(f"{folder / 'series' / name} is a DICOM file, which nnU-Net does not read")


def test_folder_into_a_file_is_refused(scans, tmp_path):
    for name in ("mask.nii.gz", "mask.mha"):
        assert "is a folder, but " in refusal(scans("a_0000.nii.gz"), tmp_path / name, ENDING)


class TestPlaceOfTheMasks:
    """Where masks would be taken for something else, or replace it."""

    @pytest.fixture
    def message(self, scans, tmp_path):
        """Return a function that gives what is said of a place; empty if nothing."""

        def check(output, source=None):
            source = source or scans("a_0000.nii.gz")
            try:
                jobs = find_jobs(source, output, ENDING)
                check_output(source, jobs)
                remove_results(jobs)
            except UserError as error:
                return str(error)
            return ""

        return check

    def test_folder_of_the_scans_is_refused(self, message, scans, monkeypatch):
        folder = scans("a_0000.nii.gz")
        said = f"The masks would lie among the scans in {folder}: give another folder with -o."
        assert message(folder) == said
        monkeypatch.chdir(folder)
        assert message(Path()) == said

    @pytest.mark.parametrize("place", ["", "imagesTr", "imagesUn", "labelsTr", "labelsTs"])
    @pytest.mark.parametrize("file", ["", "mask.nii.gz"])
    def test_raw_dataset_is_refused(self, message, scans, tmp_path, place, file):
        dataset = tmp_path / "Dataset501_Test"
        (dataset / "imagesTr").mkdir(parents=True)
        (dataset / "dataset.json").touch()
        source = scans("a_0000.nii.gz") / "a_0000.nii.gz"
        assert message(dataset / place / file, source).endswith(f"belongs to nnU-Net's folder {dataset}: give another "
                                                                "place with -o.")  # fmt: skip

    def test_new_folder_in_a_raw_dataset_is_taken(self, message, tmp_path):
        (tmp_path / "dataset.json").touch()
        assert message(tmp_path / "predictions") == ""

    def test_folder_of_a_model_is_refused(self, message, tmp_path):
        for name in ("dataset.json", "plans.json"):
            (tmp_path / name).touch()
        (tmp_path / "fold_0").mkdir()
        assert f"{tmp_path} belongs to nnU-Net's folder {tmp_path}" in message(tmp_path)

    def test_labels_of_the_same_names_are_not_replaced(self, message, tmp_path):
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.nii.gz").touch()
        assert message(tmp_path / "labels").startswith(f"{tmp_path / 'labels' / 'a.nii.gz'} is there already, and no")

    @pytest.mark.parametrize("name", ["a.npz", "a.pkl", "plans.json"])
    def test_other_files_of_these_names_are_not_lost(self, message, tmp_path, name):
        (tmp_path / name).write_text("the work of days")
        assert f"{tmp_path / name} is there already, and no prediction wrote it" in message(tmp_path)
        assert (tmp_path / name).read_text() == "the work of days"

    def test_description_of_a_stack_is_not_lost(self, message, tmp_path):
        (tmp_path / "a.json").write_text("notes")
        with pytest.raises(UserError, match=f"^{tmp_path / 'a.json'} is there already"):
            remove_results([Job("a", (tmp_path / "x_0000.tif",), tmp_path / "a", ".tif")])
        assert (tmp_path / "a.json").read_text() == "notes"

    @pytest.mark.parametrize(
        "names", [["synfoc3d_predict.json"], ["predict_from_raw_data_args.json"], ["plans.json", "dataset.json"]]
    )
    def test_masks_of_an_earlier_prediction_are(self, message, tmp_path, names):
        (tmp_path / "masks").mkdir()
        for name in ("a.nii.gz", *names):
            (tmp_path / "masks" / name).touch()
        assert message(tmp_path / "masks") == ""


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
    assert is_written(Job("a", (), tmp_path / "a", ENDING), probabilities) == finished


@pytest.mark.parametrize(("there", "missing"), [([1, 2], 0), ([0, 2], 1), ([2], 0)])
def test_missing_channel_is_refused(scans, tmp_path, there, missing):
    wanted = f"channel {missing:04d}"
    message = refusal(scans(*(f"a_{number:04d}.nii.gz" for number in there)), tmp_path / "masks", ENDING)
    assert f"Case 'a' has {tmp_path / 'scans'}" in message and f"but no {wanted}: add a_{missing:04d}" in message
