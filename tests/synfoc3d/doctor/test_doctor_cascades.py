"""Cascades in plans, as nnU-Net's planner writes them."""

from pathlib import Path

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.doctor.cascades import cascade_stages, check_cascades, data_folders, inherited
from synfoc3d.doctor.preprocessed import check_preprocessed

PLAIN = {"2d": {"data_identifier": "P_2d"}, "3d_fullres": {"data_identifier": "P_3d"}}
CASCADE = {
    "2d": {"data_identifier": "P_2d"},
    "3d_lowres": {"data_identifier": "P_low", "next_stage": "3d_cascade_fullres"},
    "3d_fullres": {"data_identifier": "P_3d"},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir()
    return folder


def test_both_stages_are_found() -> None:
    assert cascade_stages(CASCADE) == ["3d_lowres", "3d_cascade_fullres"]


def test_plans_without_cascade_have_no_stage(tmp_path: Path) -> None:
    assert cascade_stages(PLAIN) == [] and check_cascades(make(tmp_path, "P_2d", "P_3d"), PLAIN) == []


@pytest.mark.parametrize(
    ("own", "stage"), [({"batch_size": 4}, True), ({"next_stage": None}, False), ({"next_stage": ["mine"]}, True)]
)
def test_a_stage_is_inherited_as_nnunet_inherits_it(own: dict, stage: bool) -> None:
    configurations = {**CASCADE, "mine": {"inherits_from": "3d_lowres", "architecture": {}, **own}}
    manager = PlansManager({"configurations": configurations}).get_configuration("mine")
    assert ("mine" in cascade_stages(configurations)) == stage == bool(manager.next_stage_names)


def test_a_circle_of_configurations_ends() -> None:
    assert inherited({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "a", "data_identifier") is None


def test_configuration_may_inherit_its_folder() -> None:
    configurations = {"2d": {"data_identifier": "P_2d"}, "mine": {"inherits_from": "2d"}, "none": {}}
    assert data_folders(configurations) == {"2d": "P_2d", "mine": "P_2d"}


def test_preprocessed_stage_is_a_warning(tmp_path: Path) -> None:
    (finding,) = check_cascades(make(tmp_path, "P_2d", "P_low", "P_3d"), CASCADE)
    assert finding.level == "warning"
    assert finding.text == (
        "3d_lowres is preprocessed, but 3d_lowres, 3d_cascade_fullres are stages of a cascade, which the trainers do "
        "not support"
    )
    assert finding.mend == f"Train 2d or 3d_fullres; of {tmp_path}, P_low may be deleted."


def test_cascade_that_nnunet_planned_unasked_is_no_problem(tmp_path: Path) -> None:
    (finding,) = check_cascades(make(tmp_path, "P_2d", "P_3d"), CASCADE)
    assert finding.level == "ok" and "3d_lowres, 3d_cascade_fullres: stages of a cascade" in finding.text


def test_second_stage_with_data_of_its_own_is_a_warning(tmp_path: Path) -> None:
    second = {"data_identifier": "P_second", "previous_stage": "3d_lowres"}
    (finding,) = check_cascades(make(tmp_path, "P_second"), {**CASCADE, "3d_cascade_fullres": second})
    assert finding.level == "warning" and finding.text.startswith("3d_cascade_fullres is preprocessed")


def test_nobody_is_told_to_preprocess_a_stage(tmp_path: Path) -> None:
    plans = {"nnUNetPlans": {"configurations": CASCADE}}
    findings = check_preprocessed(make(tmp_path, "P_low", "P_3d"), 501, plans, labeled={"a"}, unlabeled={"u"})
    assert [finding.name for finding in findings] == ["preprocessed 3d_fullres", "cascade", "splits_semi.json"]
    assert not any("-c 3d_lowres" in finding.mend for finding in findings)
