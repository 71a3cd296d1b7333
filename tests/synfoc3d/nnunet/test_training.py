"""What is asked before a training starts."""

import json
import shutil

import pytest

from synfoc3d.errors import UserError
from synfoc3d.nnunet.training import check_preprocessed, preprocessed_facts, train
from synfoc3d.sections import DataFacts


@pytest.fixture
def only_2d(project, tmp_path):
    """A copy of the project that is planned for 3d_fullres, but not preprocessed for it."""
    copy = project.copy(tmp_path)
    shutil.rmtree(copy.preprocessed / "nnUNetPlans_3d_fullres")
    return copy


def refusal(project, configuration, plans="nnUNetPlans"):
    with project.active(), pytest.raises(UserError) as caught:
        check_preprocessed("501", configuration, plans)
    return str(caught.value)


def test_preprocessed_configuration_gives_the_full_name(only_2d):
    with only_2d.active():
        assert check_preprocessed("501", "2d", "nnUNetPlans") == "Dataset501_Tiny"


def test_planned_configuration_is_refused(only_2d):
    folder = only_2d.preprocessed / "nnUNetPlans_3d_fullres"
    assert refusal(only_2d, "3d_fullres") == (
        f"3d_fullres of Dataset501_Tiny is planned, but {folder} holds no preprocessed case: run "
        "synfoc3d preprocess -d 501 -c 3d_fullres."
    )


def test_folder_that_an_interrupted_preprocessing_left_empty_is_refused(only_2d):
    (only_2d.preprocessed / "nnUNetPlans_3d_fullres").mkdir()
    assert refusal(only_2d, "3d_fullres").endswith("run synfoc3d preprocess -d 501 -c 3d_fullres.")


def test_other_plans_are_named(only_2d):
    content = json.loads((only_2d.preprocessed / "nnUNetPlans.json").read_text())
    (only_2d.preprocessed / "Mine.json").write_text(json.dumps(content))
    assert refusal(only_2d, "3d_fullres", "Mine").endswith("run synfoc3d preprocess -d 501 -c 3d_fullres -p Mine.")


def test_configuration_that_inherits_its_data_needs_those(only_2d):
    file = only_2d.preprocessed / "nnUNetPlans.json"
    content = json.loads(file.read_text())
    content["configurations"] |= {"2d_small": {"inherits_from": "2d"}, "3d_small": {"inherits_from": "3d_fullres"}}
    file.write_text(json.dumps(content))
    with only_2d.active():
        assert check_preprocessed("501", "2d_small", "nnUNetPlans") == "Dataset501_Tiny"
    assert "3d_small of Dataset501_Tiny is planned, but" in refusal(only_2d, "3d_small")


def test_stage_of_a_cascade_is_not_told_to_be_preprocessed(only_2d):
    file = only_2d.preprocessed / "nnUNetPlans.json"
    content = json.loads(file.read_text())
    low = content["configurations"]["3d_fullres"] | {"data_identifier": "low", "next_stage": "3d_cascade_fullres"}
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    content["configurations"] |= {"3d_lowres": low, "3d_cascade_fullres": cascade}
    file.write_text(json.dumps(content))
    assert "is a stage of a cascade, which the trainers do not support: use 2d or 3d_f" in refusal(only_2d, "3d_lowres")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"configurations": []}'])
def test_damaged_plans_are_refused(only_2d, content):
    (only_2d.preprocessed / "nnUNetPlans.json").write_text(content)
    said = refusal(only_2d, "2d")
    assert said.startswith(f"{only_2d.preprocessed / 'nnUNetPlans.json'} ")
    assert said.endswith(": restore it, or delete it and run synfoc3d preprocess.")


def test_facts_are_those_of_the_dataset(project, two_channels):
    facts = []
    for one in (project, two_channels):
        with one.active():
            facts.append(preprocessed_facts("501", "2d", "nnUNetPlans"))
    labels = json.loads((project.raw / "dataset.json").read_text())["labels"]
    patch = facts[0].patch_size
    assert facts == [DataFacts(len(labels), count, patch_size=patch) for count in (1, 2)]
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    assert patch == tuple(plans["configurations"]["2d"]["patch_size"])


@pytest.mark.parametrize("fold", ["²", "-1", "all", ""])
def test_fold_that_is_no_number_is_refused(fold):
    with pytest.raises(
        UserError, match=f"The fold must be a number from 0, as synfoc3d split wrote them, but is {fold!r}"
    ):
        train("501", "2d", fold, trainer="nnUNetTrainerSupervised", plans="nnUNetPlans", device="cpu")
