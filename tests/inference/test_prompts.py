"""Prompts of a network that carries masks: from the command line to where it is asked, and what the record says."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from synfoc3d.inference.models import ModelChoice, read_info
from synfoc3d.inference.predict import PredictOptions, predict
from synfoc3d.inference.prompts import PromptChoice
from synfoc3d.networks.prompts import Box
from synfoc3d.networks.propagation import PropagatingFoundation
from synfoc3d.nnunet.case_files import prepare_case
from synfoc3d.nnunet.case_prompts import ReferencePrompt, interior_point, tight_box
from synfoc3d.nnunet.prediction import CasePredictor

ECT = "nnUNetTrainerECT"
CHOICE = ModelChoice("501", "3d_fullres", trainer=ECT)
OPTIONS = PredictOptions(mirroring=False, preprocessing_processes=0, export_processes=0, progress_bar=False)
CASES = ("Btrain002", "Btrain003")
CLASSES = ("wall", "cavity", "side_chamber")
ABSENT = {name: ",," for name in CLASSES}


@pytest.fixture(scope="session")
def ect(project):
    """The project after one step of ECT in 3d_fullres, in its results folder ``prompts``."""
    with project.active("prompts"):
        foundation = {"name": "compact", "image_size": 32}
        trainer = project.trainer(
            ECT, "3d_fullres", foundation=foundation, batch_size=1, epochs=1, iterations_per_epoch=1
        )
        trainer.run_training()
    return project


@pytest.fixture
def scans(project, tmp_path):
    """A folder with copies of two scans."""
    return shutil.copytree(project.root / "scans" / "unlabeled", tmp_path / "scans")


@pytest.fixture
def references(scans, tmp_path):
    """Masks for both scans, in which the first class is in slices 1 and 2, the second in slice 4 only."""
    for case in CASES:
        scan = nibabel.load(scans / f"{case}_0000.nii.gz")
        mask = np.zeros(scan.shape, np.uint8)
        mask[8:13, 7:12, 1:3] = 1
        mask[14:17, 9:14, 4] = 2
        (tmp_path / "references").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(mask, scan.affine), tmp_path / "references" / f"{case}.nii.gz")
    return tmp_path / "references"


@pytest.fixture
def points_file(tmp_path):
    """Return a function that writes a file of points: by case, the cells x, y, z by class."""

    def write(**cases):
        lines = [f"{case},{name},{cells}" for case, points in cases.items() for name, cells in points.items()]
        (tmp_path / "points.csv").write_text("\n".join(["case,class,x,y,z", *lines]) + "\n")
        return tmp_path / "points.csv"

    return write


@pytest.fixture
def boxes_file(tmp_path):
    """Return a function that writes a file of boxes: by case, the cells z, x0, y0, x1, y1 by class."""

    def write(**cases):
        lines = [f"{case},{name},{cells}" for case, boxes in cases.items() for name, cells in boxes.items()]
        (tmp_path / "boxes.csv").write_text("\n".join(["case,class,z,x0,y0,x1,y1", *lines]) + "\n")
        return tmp_path / "boxes.csv"

    return write


@pytest.fixture
def run(ect, tmp_path):
    """Return a function that predicts into tmp_path / "masks"."""

    def call(source, prompt=None, **options):
        with ect.active("prompts"):
            return predict(source, tmp_path / "masks", CHOICE, options=replace(OPTIONS, **options), prompt=prompt)

    return call


@pytest.fixture
def asked(monkeypatch):
    """The points that the network is asked with, in the order of the cases."""
    points, answer = [], CasePredictor.foundation

    def note(*arguments, **named):
        points.append(named["points"])
        return answer(*arguments, **named)

    monkeypatch.setattr(CasePredictor, "foundation", note)
    return points


def record(tmp_path):
    return json.loads((tmp_path / "masks" / "synfoc3d_predict.json").read_text())


def voxels(tmp_path, case="Btrain002"):
    return np.asarray(nibabel.load(tmp_path / "masks" / f"{case}.nii.gz").dataobj)


# --- where the network is asked -------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [None, PromptChoice(), PromptChoice("center")])
def test_center_is_the_default(run, scans, tmp_path, asked, prompt):
    assert run(scans, prompt) == 2
    assert asked == [None, None]
    assert record(tmp_path)["prompt"] == {"name": "center"}


def test_points_of_each_case_reach_the_network(run, scans, tmp_path, asked, points_file):
    file = points_file(Btrain003=ABSENT | {"cavity": "12,9,4"}, Btrain002=ABSENT | {"wall": "5,6,2"})
    assert run(scans, PromptChoice("point", points=file)) == 2
    wall, cavity = asked[0][0], asked[1][1]
    assert asked == [(wall, None, None), (None, cavity, None)]
    assert (wall.slice, cavity.slice) == (2, 4)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record(tmp_path)["prompt"] == {"name": "point", "file": str(file), "sha256": sha256}


def test_boxes_of_each_case_reach_the_network(run, scans, tmp_path, asked, boxes_file):
    none = dict.fromkeys(CLASSES, ",,,,")
    file = boxes_file(Btrain003=none | {"cavity": "4,10,8,14,9"}, Btrain002=none | {"wall": "2,3,6,5,8"})
    assert run(scans, PromptChoice("box", boxes=file)) == 2
    wall, cavity = asked[0][0], asked[1][1]
    assert asked == [(wall, None, None), (None, cavity, None)]
    assert isinstance(wall, Box) and (wall.slice, cavity.slice) == (2, 4)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record(tmp_path)["prompt"] == {"name": "box", "file": str(file), "sha256": sha256}


@pytest.mark.parametrize(("name", "find"), [("gt_point", interior_point), ("gt_box", tight_box)])
def test_references_reach_the_network(run, ect, scans, tmp_path, asked, references, name, find):
    assert run(scans, PromptChoice(name, references=references)) == 2
    with ect.active("prompts"):
        info = read_info(CHOICE)
    for case, points in zip(CASES, asked, strict=True):
        prompt = ReferencePrompt(references / f"{case}.nii.gz", find)
        assert points == prepare_case([scans / f"{case}_0000.nii.gz"], info, prompt).points
    assert asked[0][0].slice == 2 and asked[0][1].slice == 4 and asked[0][2] is None
    assert record(tmp_path)["prompt"] == {"name": name, "references": str(references)}


def test_worker_processes_prepare_prompts_too(run, scans, asked, points_file):
    file = points_file(**dict.fromkeys(CASES, ABSENT | {"wall": "5,6,2"}))
    run(scans, PromptChoice("point", points=file))
    run(scans, PromptChoice("point", points=file), preprocessing_processes=1)
    assert asked[:2] == asked[2:] and asked[0][0] is not None


def test_class_that_is_not_asked_for_is_absent(run, scans, tmp_path, points_file):
    file = points_file(**dict.fromkeys(CASES, ABSENT | {"cavity": "12,9,3"}))
    run(scans, PromptChoice("point", points=file))
    assert set(np.unique(voxels(tmp_path))) <= {0, 2}


def test_case_of_which_all_classes_are_absent_is_empty(run, scans, tmp_path, points_file):
    assert run(scans, PromptChoice("point", points=points_file(**dict.fromkeys(CASES, ABSENT)))) == 2
    assert not voxels(tmp_path).any()


def test_command_line_hands_boxes_on(ect, scans, tmp_path, asked, boxes_file):
    file = boxes_file(**dict.fromkeys(CASES, {"wall": "2,3,6,5,8", "cavity": ",,,,", "side_chamber": ",,,,"}))
    arguments = f"-d 501 -c 3d_fullres -tr {ECT} --disable_tta -npp 0 -nps 0 -device cpu --prompt box".split()
    ect.command("predict", "-i", scans, "-o", tmp_path / "masks", *arguments, "--boxes", file, results="prompts")
    assert asked[0][0].slice == 2 and record(tmp_path)["prompt"]["name"] == "box"


def test_command_line_hands_the_prompt_on(ect, scans, tmp_path, asked, references):
    arguments = f"-d 501 -c 3d_fullres -tr {ECT} --disable_tta -npp 0 -nps 0 -device cpu --prompt gt_point".split()
    ect.command(
        "predict", "-i", scans, "-o", tmp_path / "masks", *arguments, "--references", references, results="prompts"
    )
    assert asked[0][0].slice == 2 and record(tmp_path)["prompt"]["name"] == "gt_point"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (PromptChoice("points"), "There is no prompt 'points'. Did you mean 'point'?"),
        (PromptChoice("point"), "--prompt point needs --points: say what the network is asked with."),
        (PromptChoice("gt_box"), "--prompt gt_box needs --references: say what the network is asked with."),
        (PromptChoice("box", Path("P")), "--prompt box needs --boxes: say what the network is asked with."),
        (PromptChoice("point", Path("P"), boxes=Path("B")), "--boxes B is for --prompt box: give both, or neither."),
        (PromptChoice(None, Path("P")), "--points P is for --prompt point: give both, or neither."),
        (
            PromptChoice("point", Path("P"), Path("R")),
            "--references R is for --prompt gt_point or gt_box: give both, or neither.",
        ),
    ],
)
def test_prompt_without_what_it_needs_is_refused(refusal, scans, prompt, message):
    assert refusal(scans, prompt) == message


def test_prompt_for_a_network_that_takes_none_is_refused(run, refusal, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(PropagatingFoundation, "takes_prompts", False)
    message = "--prompt center: no network of the model 'foundation' takes a prompt; leave it out."
    assert refusal(scans, PromptChoice("center")) == message
    run(scans / "Btrain002_0000.nii.gz")
    assert "prompt" not in record(tmp_path)


def test_points_that_do_not_fit_are_refused_before_the_first_scan(refusal, scans, tmp_path, points_file):
    good = dict.fromkeys(CASES, ABSENT)
    for cases, message in (
        (good | {"Btrain02": ABSENT}, "points.csv names 'Btrain02', but there is no such scan."),
        ({"Btrain002": ABSENT}, "points.csv has no point for scan 'Btrain003'"),
        (good | {"Btrain002": {"wall": "1,2,3"}}, "points.csv has no point of 'cavity' for 'Btrain002'; add one"),
        (good | {"Btrain002": ABSENT | {"Wall": "1,2,3"}}, "names the class 'Wall' for 'Btrain002'"),
    ):
        assert message in refusal(scans, PromptChoice("point", points=points_file(**cases)))
    assert not (tmp_path / "masks").exists()


def test_missing_points_and_references_are_refused(refusal, scans, tmp_path, references):
    nothing = tmp_path / "none.csv"
    assert refusal(scans, PromptChoice("point", points=nothing)).startswith(f"{nothing} cannot be read")
    (references / "Btrain003.nii.gz").unlink()
    message = (
        f"There is no reference {references / 'Btrain003.nii.gz'} of scan 'Btrain003'; add it, or take the scan out."
    )
    assert refusal(scans, PromptChoice("gt_point", references=references)) == message
    assert not (tmp_path / "masks").exists()


def test_points_of_all_scans_serve_for_one(run, scans, points_file):
    file = points_file(**dict.fromkeys(CASES, ABSENT | {"wall": "5,6,2"}))
    assert run(scans / "Btrain003_0000.nii.gz", PromptChoice("point", points=file)) == 1


def test_points_of_all_scans_serve_for_parts(run, scans, points_file):
    file = points_file(**dict.fromkeys(CASES, ABSENT | {"wall": "5,6,2"}))
    assert run(scans, PromptChoice("point", points=file), num_parts=2, part_id=1) == 1


def test_point_outside_of_its_scan_does_not_stop_the_others(refusal, scans, tmp_path, points_file):
    file = points_file(Btrain002=ABSENT | {"wall": "5,6,60"}, Btrain003=ABSENT | {"wall": "5,6,2"})
    assert refusal(scans, PromptChoice("point", points=file)) == (
        "1 of 2 cases segmented, 1 failed:\n  Btrain002: The point (5, 6, 60) voxel of 'wall' for 'Btrain002' in "
        f"{file} lies outside of the scan; correct it."
    )
    assert (tmp_path / "masks" / "Btrain003.nii.gz").is_file()


# --- continuing -----------------------------------------------------------------------------------


def test_other_prompt_does_not_continue(run, refusal, scans, tmp_path, references, points_file):
    run(scans / "Btrain002_0000.nii.gz")
    message = refusal(scans, PromptChoice("gt_point", references=references), skip_finished=True)
    assert message.startswith(
        f"{tmp_path / 'masks' / 'synfoc3d_predict.json'} says that the masks there are of another prompt, center: give"
    )
    assert run(scans, skip_finished=True) == 1  # the same


def test_changed_points_do_not_continue_but_moved_ones_do(run, refusal, scans, tmp_path, points_file):
    cases = dict.fromkeys(CASES, ABSENT | {"wall": "5,6,2"})
    run(scans / "Btrain002_0000.nii.gz", PromptChoice("point", points=points_file(**cases)))
    moved = shutil.copy(points_file(**cases), tmp_path / "moved.csv")
    changed = points_file(**cases | {"Btrain003": ABSENT})
    assert "of another prompt" in refusal(scans, PromptChoice("point", points=changed), skip_finished=True)
    assert run(scans, PromptChoice("point", points=moved), skip_finished=True) == 1


def test_masks_of_another_prompt_are_not_continued_after_a_kill(run, scans, points_file, tmp_path, monkeypatch):
    points = PromptChoice("point", points=points_file(**{case: ABSENT | {"wall": "8,9,2"} for case in CASES}))
    run(scans)
    by_center = {case: (tmp_path / "masks" / f"{case}.nii.gz").stat().st_mtime_ns for case in CASES}
    with monkeypatch.context() as patch:

        def kill(*_, **__):
            raise KeyboardInterrupt

        patch.setattr("synfoc3d.inference.predict.run_pipeline", kill)
        with pytest.raises(KeyboardInterrupt):
            run(scans, points)
    assert run(scans, points, skip_finished=True) == len(CASES)
    assert all((tmp_path / "masks" / f"{case}.nii.gz").stat().st_mtime_ns > made for case, made in by_center.items())
