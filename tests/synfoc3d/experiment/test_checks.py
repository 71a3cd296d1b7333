"""What an experiment finds out about its methods before it trains them."""

from pathlib import Path
from typing import Any

import pytest

from synfoc3d.errors import UserError
from synfoc3d.experiment.checks import check_methods
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.experiment.trainers import is_stock
from synfoc3d.prediction_modes import MODES, PredictionMode, mean

SYNFOC = "nnUNetTrainerSynFoC"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "trainer": ({"trainer": "nnUNetTrainerSynFok"}, "no trainer nnUNetTrainerSynFok. Did you mean '" + SYNFOC),
    "preset": ({"trainer": SYNFOC, "config": "papre"}, "no preset 'papre'. Did you mean 'paper'"),
    "setting": ({"trainer": SYNFOC, "settings": {"method.tao": 1}}, "methods.a: .*'tao'. Did you mean 'tau'"),
    "value": ({"trainer": SYNFOC, "settings": {"method.tau": 7}}, "methods.a: method.tau: .*got 7"),
    "setting of another method": (
        {"trainer": "nnUNetTrainerSupervised", "settings": {"method.tau": 0.9}},
        "methods.a: .*unknown setting 'tau'",
    ),
    "settings of a stock trainer": (
        {"trainer": "nnUNetTrainer", "config": "demo"},
        "methods.a: nnUNetTrainer is no trainer of synfoc3d and reads no config",
    ),
    "foundation of a stock trainer": (
        {"trainer": "nnUNetTrainer", "models": {"a": "foundation"}},
        "methods.a.models.a: nnUNetTrainer trains only conventional",
    ),
    "ensemble of one network": (
        {"trainer": f"{SYNFOC}Base", "settings": {"method.network": "foundation"}, "models": {"a": "ensemble"}},
        "trains only foundation with these settings, so 'ensemble' cannot predict",
    ),
    "no weights": ({"trainer": SYNFOC, "config": "paper"}, "medsam_vit_b needs its published weights: get medsam_vit"),
    "missing weights": (
        {"trainer": SYNFOC, "settings": {"foundation.checkpoint": "/no/sam.pth"}},
        "the weights /no/sam.pth do not exist",
    ),
    "label of another dataset": (
        {"trainer": SYNFOC, "settings": {"method.structures": [[1], [9]]}},
        r"methods.a: method.structures.1.0: .*the dataset's highest label \(got 9\)",
    ),
    "channel of another dataset": (
        {"trainer": "nnUNetTrainerSAMed", "settings": {"foundation.channels": [0, 0, 5]}},
        r"methods.a: foundation.channels.2: .*at most 0, the dataset's last channel \(got 5\)",
    ),
    "configuration": ({"trainer": SYNFOC, "configuration": "3d_lowres"}, "no configuration '3d_lowres'"),
    "prompts for nobody": (
        {
            "trainer": "nnUNetTrainerECT",
            "config": "demo",
            "settings": {"foundation.checkpoint": "random"},
            "models": {"a": "foundation"},
        },
        "methods.a: ECT asks a network that can answer prompts, but compact starts from random weights",
    ),
    "network that ECT does not train": (
        {"trainer": "nnUNetTrainerECT", "config": "demo"},
        "methods.a.models.a: nnUNetTrainerECT trains only foundation with these settings, so 'conventional' cannot",
    ),
    "setting of ECT": (
        {"trainer": SYNFOC, "config": "demo", "settings": {"foundation.carry": False}},
        "methods.a: foundation.carry.* of nnUNetTrainerECT alone",
    ),
}


def check(project: Any, method: dict[str, Any]) -> None:
    with project.active():
        check_methods(parse_plan({"dataset": 501, "splits": [{"fold": 0}], "methods": {"a": method}}, "plan"))


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistake_is_refused(mistake: str, project: Any) -> None:
    method, message = REFUSED[mistake]
    with pytest.raises(UserError, match=message):
        check(project, method)


def test_planned_configuration_that_was_not_preprocessed_is_refused(mixed_project: Any) -> None:
    method = {"trainer": "nnUNetTrainerSupervised", "configuration": "3d_fullres"}
    with pytest.raises(UserError, match=r"holds no preprocessed case: run synfoc3d preprocess -d 501 -c 3d_fullres\.$"):
        check(mixed_project, method)


FINE_TUNED = {"trainer": "nnUNetTrainerCFRFineTune", "config": "demo", "models": {"sam": "foundation"}}
RETRAINED = {"trainer": "nnUNetTrainerCFR", "config": "demo", "labeler": "sam"}
SUPERVISED = {"trainer": "nnUNetTrainerSupervised"}
CANNOT_LEARN: dict[str, tuple[dict[str, Any], str]] = {
    "from a stock trainer": (
        {"sam": {"trainer": "nnUNetTrainer"}, "cfr": RETRAINED},
        "methods.cfr.labeler: 'sam' cannot label: nnUNetTrainer is no trainer of synfoc3d",
    ),
    "from a network of another kind": (
        {"sam": SUPERVISED, "cfr": RETRAINED},
        "methods.cfr.labeler: 'sam' cannot label: nnUNetTrainerSupervised trains no foundation network",
    ),
    "as a stock trainer": (
        {"sam": FINE_TUNED, "cfr": {"trainer": "nnUNetTrainer", "labeler": "sam"}},
        "methods.cfr: nnUNetTrainer is no trainer of synfoc3d and learns from no labeler",
    ),
    "as a method that does not": (
        {"sam": FINE_TUNED, "cfr": SUPERVISED | {"labeler": "sam"}},
        "methods.cfr: nnUNetTrainerSupervised learns from no other training; leave labeler out",
    ),
    "from nowhere": (
        {"cfr": RETRAINED | {"labeler": None}},
        "methods.cfr: nnUNetTrainerCFR learns from a finished training: name the method of this plan with labeler",
    ),
}


def check_volumes(project: Any, methods: dict[str, Any]) -> None:
    tree = {"dataset": 501, "configuration": "3d_fullres", "splits": [{"fold": 0}], "methods": methods}
    with project.active():
        check_methods(parse_plan(tree, "plan"))


@pytest.mark.parametrize("mistake", CANNOT_LEARN)
def test_method_that_cannot_learn_is_refused(mistake: str, project: Any) -> None:
    methods, message = CANNOT_LEARN[mistake]
    with pytest.raises(UserError, match=message):
        check_volumes(project, methods)


@pytest.mark.parametrize(
    "methods",
    [
        {"cfr": RETRAINED, "sam": FINE_TUNED},
        {"cfr": RETRAINED | {"settings": {"method.module": "magicnet"}}, "sam": FINE_TUNED},
        {"cfr": RETRAINED | {"labeler": None, "settings": {"method.labeler": "/elsewhere/checkpoint_final.pth"}}},
    ],
)
def test_method_that_learns_from_a_finished_training(methods: dict[str, Any], project: Any) -> None:
    check_volumes(project, methods)


def test_volumes_that_a_canvas_needs_are_asked_for(project: Any) -> None:
    with pytest.raises(UserError, match="methods.a: A canvas shows .*: train 3d_fullres"):
        check(project, {"trainer": "nnUNetTrainerCFRFineTune", "config": "demo", "models": {"a": "foundation"}})


@pytest.mark.parametrize(
    "method",
    [
        {"trainer": "nnUNetTrainerMeanTeacher", "config": "demo", "settings": {"method.noise": 0.2}},
        {"trainer": "nnUNetTrainerMagicNet", "config": "demo"},
        {"trainer": "nnUNetTrainer_5epochs"},
        {"trainer": f"{SYNFOC}Base", "config": "paper", "settings": {"method.network": "conventional"}},
        {"trainer": SYNFOC, "config": "demo", "configuration": "3d_fullres", "models": {"a": "ensemble"}},
        {"trainer": "nnUNetTrainerECT", "settings": {"foundation.name": "compact"}, "models": {"a": "foundation"}},
        {
            "trainer": "nnUNetTrainerECT",
            "settings": {"foundation.name": "compact", "method.streams": 1},
            "models": {"a": "foundation"},
        },
    ],
)
def test_method_that_can_be_trained(method: dict[str, Any], project: Any) -> None:
    check(project, method)


def test_mode_in_the_table_is_known_with_its_students(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "toy", PredictionMode("toy", "", ("foundation", "conventional"), mean))
    method = {"trainer": SYNFOC, "config": "demo", "models": {"a": "toy"}}
    check(project, method)
    with pytest.raises(UserError, match="trains only conventional with these settings, so 'toy' cannot predict"):
        check(project, method | {"trainer": f"{SYNFOC}Base", "settings": {"method.network": "conventional"}})


@pytest.mark.parametrize(
    ("name", "base", "place", "stock"),
    [
        ("nnUNetTrainerOurs", "SemiSupervisedTrainer", "synfoc3d.trainers.life_cycle.trainer", False),
        ("nnUNetTrainerTheirs", "nnUNetTrainer", "nnunetv2.training.nnUNetTrainer.nnUNetTrainer", True),
    ],
)
def test_trainer_in_a_folder_of_the_user(
    name: str, base: str, place: str, stock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "from synfoc3d.methods.supervised import Supervised\n" if not stock else ""
    body = "    pass" if stock else "    method_class = Supervised"
    (tmp_path / f"{name}.py").write_text(f"{method}from {place} import {base}\n\n\nclass {name}({base}):\n{body}\n")
    monkeypatch.setenv("nnUNet_extTrainer", f"/nowhere:{tmp_path}")
    assert is_stock(name) == stock


def test_trainers_that_come_along() -> None:
    assert [is_stock(name) for name in (SYNFOC, "nnUNetTrainer", "nnUNetTrainer_5epochs")] == [False, True, True]
