"""Damaged files of nnU-Net's, beside data and models, end in one sentence that names the file."""

import copy
import json
import shutil

import pytest

from synfoc3d.errors import UserError
from synfoc3d.nnunet.plans_and_dataset import check_channels, read_description, read_plans

NO_OBJECT = {
    "empty": (b"", "is no valid JSON"),
    "cut": (b'{"labels": {"a"', "is no valid JSON"),
    "latin": (b'{"a": "\xe9"}', "is no valid JSON"),
    "list": (b"[]", "must hold a JSON object, but holds a list"),
    "null": (b"null", "must hold a JSON object, but holds a NoneType"),
    "nested": (b"[" * 100_000, "is no valid JSON"),
    "twice": (b'{"labels": {"a": 1, "b": 2, "a": 3}}', "'a' is there 2 times in one object"),
}


def changed(content, *keys, value=None):
    """Return a copy whose entry under the keys has another value; None takes it out."""
    content = copy.deepcopy(content)
    part = content
    for key in keys[:-1]:
        part = part[key]
    if value is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    return content


@pytest.fixture
def plans(project, tmp_path):
    """Return a function that writes good plans with one change, and the good ones."""
    good = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    file = tmp_path / "plans.json"

    def write(*keys, value=None):
        file.write_text(json.dumps(changed(good, *keys, value=value) if keys else good))
        return file

    return write


@pytest.mark.parametrize(("content", "said"), NO_OBJECT.values(), ids=NO_OBJECT)
@pytest.mark.parametrize("read", [lambda file: read_plans(file, "2d"), read_description], ids=["plans", "dataset"])
def test_no_json_object(tmp_path, read, content, said):
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(file)
    assert (
        f"{file} " in str(caught.value)
        and said in str(caught.value)
        and str(caught.value).endswith("nnUNet_preprocessed.")
    )


@pytest.mark.parametrize("read", [lambda file: read_plans(file, "2d"), read_description], ids=["plans", "dataset"])
def test_missing_file(tmp_path, read):
    with pytest.raises(UserError, match=r"none.json cannot be read \(No such file or directory\): restore it"):
        read(tmp_path / "none.json")


def test_good_plans_are_read(plans):
    assert read_plans(plans(), "2d").get_configuration("2d").patch_size == [24, 24]
    assert "3d_fullres" in read_plans(plans()).available_configurations


PLANS = ("dataset_name", "plans_name", "configurations", "transpose_forward", "image_reader_writer")
CONFIGURATION = (
    "patch_size",
    "spacing",
    "normalization_schemes",
    "resampling_fn_data",
    "batch_size",
    "data_identifier",
    "preprocessor_name",
    "use_mask_for_norm",
    "batch_dice",
)


@pytest.mark.parametrize("value", [None, 7])
@pytest.mark.parametrize("key", PLANS)
def test_plans_without_an_entry_or_with_another_type(plans, key, value):
    with pytest.raises(UserError, match=rf"plans.json is no plans of nnU-Net: {key}: "):
        read_plans(plans(key, value=value), "2d")


@pytest.mark.parametrize("value", [None, {"text": 1}])
@pytest.mark.parametrize("key", CONFIGURATION)
def test_configuration_without_an_entry_or_with_another_type(plans, key, value):
    with pytest.raises(UserError, match=rf"plans.json: configurations.2d.{key}: "):
        read_plans(plans("configurations", "2d", key, value=value), "2d")


@pytest.mark.parametrize("of", ["data", "seg", "probabilities"])
def test_resampling_without_its_arguments(plans, of):
    key = f"resampling_fn_{of}_kwargs"
    with pytest.raises(UserError, match=rf"plans.json: configurations.2d.{key}: "):
        read_plans(plans("configurations", "2d", key, value=None), "2d")


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("configurations", "2d", "patch_size"), [0, 24], "patch_size.0: Input should be greater than or equal to 1"),
        (("configurations", "2d", "spacing"), [float("nan"), 1], "spacing.0: Input should be a finite number"),
        (("configurations", "2d", "spacing"), [1, 1, 1], "patch_size has 2 axes, but spacing 3"),
        (("configurations", "2d", "use_mask_for_norm"), [False, True], "different numbers of channels"),
        (
            ("configurations", "2d", "architecture", "arch_kwargs", "strides"),
            [[1, 1], [2], [2, 2]],
            "strides do not all",
        ),
        (("transpose_forward",), [0, 1], "transpose_forward: Input should be 0, 1 and 2 in any order"),
        (("configurations", "2d", "architecture"), None, "'UNet_class_name' is missing"),
        (("configurations", "2d", "architecture", "arch_kwargs", "n_stages"), 9, "n_conv_per_stage must have as many"),
        (("configurations", "2d", "inherits_from"), "2d", "Circular dependency"),
        (("configurations", "2d", "resampling_fn_data"), "no_such", "Unable to find resampling function"),
        (("configurations", "2d", "preprocessor_name"), "NoSuch", "is no class or function"),
        (("image_reader_writer",), "NoSuch", "Unable to find reader writer class"),
        (("configurations", "2d"), None, "has no configuration '2d'. Known: 3d_fullres."),
    ],
)
def test_plans_that_nnunet_cannot_use(plans, keys, value, said):
    file = plans(*keys, value=value)
    with pytest.raises(UserError) as caught:
        read_plans(file, "2d")
    assert str(caught.value).startswith(str(file)) and said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("labels", None, "labels: Field required"),
        ("labels", ["a", "b"], "labels: Input should be a valid dictionary"),
        ("file_ending", None, "file_ending: Field required"),
        ("file_ending", "nii", "file_ending: String should match"),
        ("channel_names", ["T1"], "channel_names: Input should be a valid dictionary"),
        ("channel_names", None, "it names no channel"),
    ],
)
def test_dataset_json_of_another_form(project, tmp_path, key, value, said):
    good = json.loads((project.raw / "dataset.json").read_text())
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(changed(good, key, value=value)))
    with pytest.raises(UserError) as caught:
        read_description(file)
    assert str(caught.value).startswith(f"{file} is no dataset.json of nnU-Net: ") and said in str(caught.value)


@pytest.mark.parametrize("labels", [{"background": 5, "a": 1}, {"a": 1}, {"background": 0, "whole": [1, 2], "core": 2}])
def test_labels_that_nnunet_refuses(project, tmp_path, labels):
    good = json.loads((project.raw / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(changed(good, "labels", value=labels)))
    with pytest.raises(UserError, match=r"dataset\.json declares labels that nnU-Net refuses"):
        read_description(tmp_path / "dataset.json")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize("command", ["predict", "rank", "export"])
def test_commands_that_read_a_model_name_its_damaged_file(trained, tmp_path, capsys, command, name):
    shutil.copytree(trained.root / "nnUNet_results", tmp_path / "nnUNet_results")
    file = next((tmp_path / "nnUNet_results").glob(f"*/*/{name}"))
    file.write_text("{")
    from synfoc3d.cli import main

    where = ["-d", "501", "-c", "2d", "-o", str(tmp_path / "out")]
    more = {"predict": ["-i", str(trained.root / "scans" / "unlabeled"), "-device", "cpu"], "rank": ["-device", "cpu"]}
    with trained.active() as patch, pytest.raises(SystemExit, match="1"):
        patch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
        main([command, *where, *more.get(command, [])])
    said = capsys.readouterr().err
    assert f"synfoc3d {command}: {file} is no valid JSON" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nnUNetPlans.json", "dataset.json"])
def test_train_names_the_damaged_file_of_its_data(project, tmp_path, capsys, name):
    from synfoc3d.cli import main

    copy_of = tmp_path / "nnUNet_preprocessed" / "Dataset501_Tiny"
    copy_of.mkdir(parents=True)
    for file in ("nnUNetPlans.json", "dataset.json"):
        shutil.copy(project.preprocessed / file, copy_of)
    (copy_of / "nnUNetPlans_2d").mkdir()
    (copy_of / "nnUNetPlans_2d" / "Atrain001.pkl").touch()
    (copy_of / name).write_text("[1]")
    with project.active() as patch, pytest.raises(SystemExit, match="1"):
        patch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
        main(["train", "501", "2d", "0", "-device", "cpu"])
    assert f"synfoc3d train: {copy_of / name} must hold a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [{"0": "a", "1": "b"}, {"1": "a"}])
def test_plans_of_other_channels_than_the_dataset(plans, project, channels):
    description = json.loads((project.raw / "dataset.json").read_text())
    file = plans()
    check_channels(read_plans(file, "2d"), "2d", description, file)
    if "0" not in channels:
        file = plans("foreground_intensity_properties_per_channel", value={"1": {"mean": 1.0}})
    with pytest.raises(UserError, match=rf"plans.json was made for other channels than the {len(channels)} of"):
        check_channels(read_plans(file, "2d"), "2d", description | {"channel_names": channels}, file)
