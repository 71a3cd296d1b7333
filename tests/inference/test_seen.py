"""Comparisons are marked where a foundation network has, or may have, seen the test data."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from synfoc3d.inference.seen import seen_marks
from synfoc3d.networks.weights.known import KNOWN

NAME = "The foundation network lite_medsam"


def published(name: str) -> dict[str, Any]:
    return {"name": name, "checkpoint": KNOWN[name].file, "sha256": KNOWN[name].published_hash, "in_checkpoint": False}


@pytest.fixture
def train(tmp_path: Path):
    """Return a function that leaves a training behind and returns the folder of a student's validation masks."""

    def make(
        student: str = "foundation",
        dataset: str = "Dataset524_BUSI",
        trainer: str = "nnUNetTrainerSynFoC",
        foundation: dict[str, Any] | None = None,
        seen: bool | None = None,
    ) -> Path:
        fold = tmp_path / dataset / f"{trainer}__nnUNetPlans__2d" / "fold_0"
        identity = published("lite_medsam") if foundation is None else foundation
        said = {"foundation": identity, "settings": {"foundation": {"name": identity["name"], "seen": seen}}}
        masks = fold / ("validation" if student == "conventional" else f"validation_{student}")
        masks.mkdir(parents=True, exist_ok=True)
        (fold / "synfoc3d.yaml").write_text(yaml.safe_dump(said))
        return masks

    return make


def test_figures_of_data_that_were_seen_are_marked(train) -> None:
    assert seen_marks({"F": [train()]}, Path("/labels")) == (
        f"{NAME} was trained on BUSI: its figures here (F) are not of unseen data.",
    )


def test_figures_of_data_that_may_have_been_seen_are_marked(train) -> None:
    (mark,) = seen_marks({"F": [train(dataset="Dataset521_Prostate")]}, Path("/labels"))
    assert mark.startswith(f"{NAME} may have been trained on NCI-ISBI 2013 / Prostate-3T (RUNMC, probably BMC)")
    assert mark.endswith(": its figures here (F) may not be of unseen data.")


def test_students_that_learned_from_it_are_named(train) -> None:
    masks = {"F": [train()], "C": [train("conventional")]}
    assert seen_marks(masks, Path("/labels")) == (
        f"{NAME} was trained on BUSI: its figures here (F) are not of unseen data, nor are those of C, which learned "
        "from it.",
    )


def test_a_lone_student_that_learned_from_it_is_named(train) -> None:
    assert seen_marks({"C": [train("conventional")]}, Path("/labels")) == (
        f"{NAME} was trained on BUSI: the figures of C, which learned from it, are not of unseen data.",
    )


def test_a_training_without_foundation_network_is_not_marked(train) -> None:
    none = {"name": None, "checkpoint": None, "sha256": None, "in_checkpoint": True}
    assert seen_marks({"C": [train("conventional", foundation=none)]}, Path("/labels")) == ()


@pytest.mark.parametrize("dataset", ["Dataset501_Mine", "Dataset525_ACDC", "Dataset523_MnMs"])
def test_what_was_not_seen_or_is_not_known_is_not_marked(train, dataset: str) -> None:
    assert seen_marks({"F": [train(dataset=dataset)]}, Path("/labels")) == ()


def test_a_network_without_medical_images_is_not_marked(train) -> None:
    assert seen_marks({"F": [train(foundation=published("sam_vit_b"))]}, Path("/labels")) == ()


def test_several_networks_have_a_sentence_each(train) -> None:
    other = train(trainer="nnUNetTrainerSAMed", foundation=published("medsam_vit_b"))
    marks = seen_marks({"F": [train()], "G": [other]}, Path("/labels"))
    assert [mark.partition(":")[0] for mark in marks] == [
        f"{NAME} was trained on BUSI",
        "The foundation network medsam_vit_b may have been trained on BUSI",
    ]


def test_the_dataset_of_the_references_is_judged_where_it_is_known(train) -> None:
    own = {"F": [train(dataset="Dataset501_Mine")]}
    assert len(seen_marks(own, Path("/raw/Dataset524_BUSI/labelsTs"))) == 1
    assert seen_marks({"F": [train()]}, Path("/raw/Dataset501_Mine/labelsTs")) == ()


def test_domains_of_the_cases_are_judged(train) -> None:
    (mark,) = seen_marks({"F": [train(dataset="Dataset501_Mine")]}, Path("/labels"), ["UCL", "RUNMC"])
    assert "was trained on NCI-ISBI 2013 / Prostate-3T (RUNMC):" in mark


def test_the_setting_is_heard(train) -> None:
    (mark,) = seen_marks({"F": [train(dataset="Dataset501_Mine", seen=True)]}, Path("/labels"))
    assert mark == f"{NAME} was trained on Dataset501_Mine: its figures here (F) are not of unseen data."
    assert seen_marks({"F": [train(seen=False)]}, Path("/labels")) == ()


def predicted(folder: Path, **said: Any) -> Path:
    folder.mkdir()
    content = {"model_folder": "/gone/nnUNetTrainerSynFoC__nnUNetPlans__2d", "folds": [0], "dataset": "Dataset524_BUSI"}
    content["settings"] = {"0": {"foundation": {"name": "lite_medsam"}}}
    (folder / "synfoc3d_predict.json").write_text(json.dumps(content | said))
    return folder


@pytest.mark.parametrize("model", ["foundation", "ensemble"])
def test_masks_tell_of_a_training_that_is_gone(tmp_path: Path, model: str) -> None:
    (mark,) = seen_marks({"F": [predicted(tmp_path / "masks", model=model)]}, Path("/labels"))
    assert mark.startswith(f"{NAME} was trained on BUSI")


def test_a_conventional_network_of_a_training_that_is_gone_is_not_accused(tmp_path: Path) -> None:
    assert seen_marks({"C": [predicted(tmp_path / "masks", model="conventional")]}, Path("/labels")) == ()


def test_masks_tell_of_a_training_that_is_there(train, tmp_path: Path) -> None:
    folder = train("conventional").parents[1]
    masks = predicted(tmp_path / "masks", model="conventional", model_folder=str(folder))
    (mark,) = seen_marks({"C": [masks]}, Path("/labels"))
    assert mark.endswith("the figures of C, which learned from it, are not of unseen data.")


@pytest.mark.parametrize("settings", [{}, {"0": {"foundation": [1]}}, {"0": None}])
def test_damaged_settings_stop_nothing(tmp_path: Path, settings: Any) -> None:
    masks = predicted(tmp_path / "masks", model="foundation", settings=settings)
    assert seen_marks({"F": [masks]}, Path("/labels")) == ()


def test_masks_of_unknown_origin_are_not_marked(tmp_path: Path) -> None:
    assert seen_marks({"F": [tmp_path]}, Path("/labels")) == ()
