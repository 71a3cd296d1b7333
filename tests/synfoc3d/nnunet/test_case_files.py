"""Reading, checking and preprocessing a scan; writing its mask."""

import gzip
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.errors import UserError
from synfoc3d.files.volumes import read_scan
from synfoc3d.nnunet import readers
from synfoc3d.nnunet.case_files import ModelInfo, prepare_case, write_case

SKEWED = np.array([[1.0, 0.2, 0, -5], [0, 1.5, 0, 7], [0, 0, 4, 2], [0, 0, 0, 1]])


@pytest.fixture(scope="session")
def info(project):
    """Return a function that gives what is known of a model of the tiny dataset."""

    def get(configuration="2d"):
        plans = PlansManager(load_json(str(project.preprocessed / "nnUNetPlans.json")))
        return ModelInfo(plans, configuration, load_json(str(project.preprocessed / "dataset.json")))

    return get


@pytest.fixture
def scan(project, tmp_path):
    """A copy of an unlabeled scan."""
    return shutil.copy(project.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz", tmp_path / "case_0000.nii.gz")


@pytest.fixture
def refusal(info):
    """Return a function that gives the sentence a scan is refused with."""

    def call(*files, configuration="2d"):
        with pytest.raises(UserError) as caught:
            prepare_case(files, info(configuration))
        return str(caught.value)

    return call


def rewrite(file, change):
    """Change the voxels of a scan."""
    image = nibabel.load(file)
    values = change(np.asarray(image.dataobj).astype(np.float32))
    nibabel.save(nibabel.Nifti1Image(values, image.affine), file)
    return file


def logits(case, classes=4):
    """Random logits on the grid of a prepared case."""
    return np.random.default_rng(0).normal(size=(classes, *case.image.shape[1:])).astype(np.float16)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_preprocessing_is_nnunets(scan, info, configuration):
    model = info(configuration)
    settings = model.plans.get_configuration(configuration)
    expected, _, _ = settings.preprocessor_class(verbose=False).run_case(
        [str(scan)], None, model.plans, settings, model.dataset_json
    )
    np.testing.assert_array_equal(prepare_case([scan], model).image, expected)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_scan_of_which_resampling_leaves_nothing_is_refused(refusal, scan, configuration):
    image = nibabel.load(scan)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, scan)
    message = refusal(scan, configuration=configuration)
    assert message.startswith(str(scan)) and "mm on one axis, of which nothing is left in voxels of" in message


def test_too_many_channels_are_refused(refusal, scan):
    assert "2 channels, but the model was trained with 1; give as many." in refusal(scan, scan)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused(refusal, scan, value):
    def spoil(values):
        values[0, :2, 0] = value
        return values

    message = f"{scan} holds NaN or infinite values (2 of its voxels); replace them by numbers."
    assert refusal(rewrite(scan, spoil)) == message


@pytest.mark.parametrize("factor", [1e20, 1e-12])
def test_values_that_normalizing_would_flatten_are_refused(refusal, scan, factor):
    message = refusal(rewrite(scan, lambda values: values.astype(np.float32) * np.float32(factor)))
    assert message.startswith(f"{scan} holds values from") and message.endswith("to another unit.")


def test_scan_of_one_value_is_segmented_with_a_word(info, scan):
    assert prepare_case([scan], info()).doubts == ()
    prepared = prepare_case([rewrite(scan, lambda values: values * 0 + 7)], info())
    assert prepared.doubts == (f"{scan} holds nothing but the value 7: see that the file is right.",)


class TestStackWithoutSpacing:
    @pytest.fixture
    def stack(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 99, (8, 24, 24)).astype(np.uint8)
        tifffile.imwrite(tmp_path / "t_0000.tif", values)
        return tmp_path / "t_0000.tif"

    @pytest.fixture
    def model(self, info):
        """Return a function that gives a model of stacks by the spacing of its training."""

        def get(*spacing):
            model = info()
            changes = {"image_reader_writer": "Tiff3DIO", "original_median_spacing_after_transp": list(spacing)}
            return replace(model, plans=PlansManager(model.plans.plans | changes))

        return get

    def test_is_refused_where_the_training_had_one(self, model, stack):
        with pytest.raises(UserError) as caught:
            prepare_case([stack], model(4, 1, 1))
        assert str(caught.value) == (
            f"{stack} has no spacing, but the model was trained on scans with one: write {stack.parent / 't.json'} "
            'with the size of its voxels in mm, as {"spacing": [z, y, x]}.'
        )

    def test_is_taken_where_it_had_none(self, model, stack):
        assert prepare_case([stack], model(1, 1, 1)).properties["spacing"] == (1, 1, 1)

    def test_with_its_file_it_is_taken(self, model, stack):
        (stack.parent / "t.json").write_text('{"spacing": [4, 1, 1]}')
        assert prepare_case([stack], model(4, 1, 1)).properties["spacing"] == [4, 1, 1]


def test_scan_without_voxels_is_refused(refusal, scan):
    message = refusal(rewrite(scan, lambda values: values[:, :0]))
    assert str(scan) in message and ("holds no voxels" in message or "cannot be read" in message)


def test_slice_is_refused_where_a_volume_is_needed(refusal, scan):
    message = refusal(rewrite(scan, lambda values: values[..., :1]), configuration="3d_fullres")
    assert message == f"{scan} is a single slice, but 3d_fullres needs a volume; use a 2d model."


@pytest.mark.parametrize("kept", [0.5, 0.05])
def test_truncated_file_is_refused(refusal, scan, kept):
    data = scan.read_bytes()
    scan.write_bytes(data[: int(kept * len(data))])
    assert str(scan) in (message := refusal(scan)) and "replace" in message


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIO"])
@pytest.mark.parametrize("byte", [-8, -4, 300])  # of the checksum, of the length, of the voxels
def test_damaged_file_is_refused_whatever_reads_it(info, scan, flip_bit, reader, byte):
    model = info()
    plans = PlansManager(model.plans.plans | {"image_reader_writer": reader})
    with pytest.raises(UserError, match=f"^{flip_bit(scan, byte)} cannot be read, it is damaged"):
        prepare_case([scan], replace(model, plans=plans))


def test_file_cut_short_is_refused_whatever_reads_it(info, scan):
    model = info()
    plans = PlansManager(model.plans.plans | {"image_reader_writer": "SimpleITKIO"})
    scan.write_bytes(scan.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"^{scan} cannot be read, it is damaged"):
        prepare_case([scan], replace(model, plans=plans))


def test_file_that_is_no_image_is_refused(refusal, scan):
    scan.write_bytes(gzip.compress(b"not an image"))
    assert f"{scan} cannot be read, it is damaged or of another format" in refusal(scan)


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIO"])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((4, 3, 2), np.complex64), "stores colors or complex numbers (complex64)"),
        (np.ones((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "stores colors or complex numbers"),
        (np.ones((4, 3), np.int16), "has 2 dimensions (4, 3), but nnU-Net reads NIfTI files with 3"),
    ],
)
def test_what_the_import_refuses_is_refused_in_its_words(info, tmp_path, write_nifti, values, words, reader):
    model = info()
    plans = PlansManager(model.plans.plans | {"image_reader_writer": reader})
    scan = write_nifti(tmp_path / "case_0000.nii.gz", values)
    with pytest.raises(UserError) as caught:
        prepare_case([scan], replace(model, plans=plans))
    with pytest.raises(UserError) as of_import:
        read_scan(scan)
    assert str(caught.value).startswith(f"{scan} {words}") and str(caught.value) == str(of_import.value)


def test_time_series_is_refused(refusal, scan):
    message = refusal(rewrite(scan, lambda values: np.stack([values] * 2, -1)))
    assert "has 4 dimensions" in message and "one 3D file per channel" in message


@pytest.fixture
def channels(two_channels, tmp_path):
    """Both channels of a scan, and the model they are for."""
    for channel in ("0000", "0001"):
        shutil.copy(two_channels.root / "scans" / "unlabeled" / f"Btrain002_{channel}.nii.gz", tmp_path)
    first, second = (tmp_path / f"Btrain002_{channel}.nii.gz" for channel in ("0000", "0001"))
    plans = PlansManager(load_json(str(two_channels.preprocessed / "nnUNetPlans.json")))
    info = ModelInfo(plans, "2d", load_json(str(two_channels.preprocessed / "dataset.json")))
    return first, second, info


def test_channels_of_different_shapes_are_refused(channels):
    first, second, info = channels
    rewrite(second, lambda values: values[1:])
    with pytest.raises(UserError, match=rf"{second} has the shape .*, but {first} has"):
        prepare_case([first, second], info)


def test_channel_in_another_place_is_refused(channels):
    first, second, info = channels
    image = nibabel.load(second)
    moved = image.affine.copy()
    moved[0, 3] += 10
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), second)
    with pytest.raises(UserError, match=rf"The affine of {second} places voxels up to .* away from where {first} has"):
        prepare_case([first, second], info)


def test_channel_without_a_place_is_refused(channels):
    first, second, info = channels
    image = nibabel.load(second)
    header = image.header.copy()
    header["srow_x"] = header["srow_y"]  # two axes in one direction
    values = np.asarray(image.dataobj)
    nibabel.save(nibabel.Nifti1Image(values, header.get_sform(), header), second)
    with pytest.raises(UserError, match=rf"{second} has voxels of 0 x "):
        prepare_case([first, second], info)


def test_channels_in_one_place_are_taken(channels):
    first, second, info = channels
    assert len(prepare_case([first, second], info).image) == 2


def test_mask_lies_on_the_scans_grid(scan, info, tmp_path):
    case = prepare_case([scan], info())
    write_case(tmp_path / "mask", logits(case), case, info(), are_probabilities=False)
    for library in (nibabel.load, SimpleITK.ReadImage):
        library(str(tmp_path / "mask.nii.gz"))
    mask, image = nibabel.load(tmp_path / "mask.nii.gz"), nibabel.load(scan)
    assert mask.shape == image.shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)


def test_scan_with_skewed_axes_is_segmented_on_its_own_grid(scan, info, tmp_path):
    straight = prepare_case([scan], info()).image
    image = nibabel.load(scan)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), SKEWED), scan)
    with pytest.raises(RuntimeError):  # or there would be nothing to test
        SimpleITK.ReadImage(str(scan))
    case = prepare_case([scan], info())
    write_case(tmp_path / "mask", logits(case), case, info(), are_probabilities=False)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, SKEWED, atol=1e-5)
    assert mask.shape == image.shape and case.image.ndim == straight.ndim


def test_noise_in_the_header_changes_no_voxel(scan, info, tmp_path):
    image = nibabel.load(scan)
    clean = prepare_case([scan], info()).image
    noisy = image.affine.copy()
    noisy[:3, :3] += 1e-7
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), noisy), scan)
    np.testing.assert_allclose(prepare_case([scan], info()).image, clean, atol=1e-4)


def test_mask_of_logits_is_nnunets(scan, info, tmp_path):
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    case, model = prepare_case([scan], info()), info()
    write_case(tmp_path / "ours", logits(case), case, model, are_probabilities=False, save_probabilities=True)
    export_prediction_from_logits(
        logits(case), case.properties, model.plans.get_configuration("2d"), model.plans, model.dataset_json,
        str(tmp_path / "theirs"), save_probabilities=True,
    )  # fmt: skip
    ours, theirs = (nibabel.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (np.load(tmp_path / f"{name}.npz")["probabilities"] for name in ("ours", "theirs"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert (tmp_path / "ours.pkl").is_file()


def test_probabilities_are_written_as_they_are(scan, info, tmp_path):
    case = prepare_case([scan], info())
    values = np.exp(logits(case).astype(np.float32))
    values /= values.sum(0)
    write_case(tmp_path / "mask", values, case, info(), are_probabilities=True, save_probabilities=True)
    saved = np.load(tmp_path / "mask.npz")["probabilities"]
    np.testing.assert_allclose(saved.sum(0), 1, atol=1e-5)
    inside = tuple(slice(*side) for side in case.properties["bbox_used_for_cropping"])
    if values.shape[1:] == saved[(slice(None), *inside)].shape:  # the tiny scans keep their spacing
        np.testing.assert_allclose(saved[(slice(None), *inside)], values, atol=1e-6)


def test_mask_that_cannot_be_written_leaves_nothing(scan, info, tmp_path, monkeypatch):
    case = prepare_case([scan], info())
    monkeypatch.setattr(readers, "write_mask", lambda *_: 1 / 0)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        write_case(tmp_path / "mask", logits(case), case, info(), are_probabilities=False, save_probabilities=True)
    assert sorted(tmp_path.iterdir()) == before


def test_remains_of_a_killed_run_are_overwritten(scan, info, tmp_path):
    (tmp_path / ".mask.partial").mkdir()
    (tmp_path / ".mask.partial" / "old").touch()
    case = prepare_case([scan], info())
    write_case(tmp_path / "mask", logits(case), case, info(), are_probabilities=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["case_0000.nii.gz", "mask.nii.gz"]
