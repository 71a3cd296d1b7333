"""Which mode validation cases prefer, by figures made by hand, and how a training keeps them."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synfoc3d.errors import UserError
from synfoc3d.preferred_mode import (
    foreground_dice,
    preferred_mode,
    read_validation_dice,
    write_validation_dice,
)

BOTH = {"conventional", "foundation"}


def figures(conventional: float, foundation: float, ensemble: float) -> dict[str, float]:
    return {"conventional": conventional, "foundation": foundation, "ensemble": ensemble}


def test_highest_dice_is_preferred() -> None:
    found = preferred_mode(BOTH, [figures(0.753, 0.812, 0.809)])
    assert found is not None and found.mode.name == "foundation" and found.folds == 1
    assert str(found) == "the foundation network is best (Dice 81.2; ensemble 80.9, conventional 75.3)"


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        (figures(0.5, 0.5, 0.5), "ensemble"),
        (figures(0.6, 0.6, 0.5), "conventional"),
        (figures(0.6, 0.5, 0.6), "ensemble"),
    ],
)
def test_tie_keeps_the_order_of_the_default(dice: dict[str, float], best: str) -> None:
    found = preferred_mode(BOTH, [dice])
    assert found is not None and found.mode.name == best


def test_folds_are_averaged_and_those_without_figures_left_out() -> None:
    # means: 0.5, 0.55, 0.6
    found = preferred_mode(BOTH, [figures(0.8, 0.5, 0.6), {}, figures(0.2, 0.6, 0.6)])
    assert found is not None and found.mode.name == "ensemble" and found.folds == 2
    assert list(found.dice) == ["ensemble", "foundation", "conventional"]
    assert list(found.dice.values()) == pytest.approx([0.6, 0.55, 0.5])
    assert str(found).startswith("the ensemble is best (Dice 60.0; ")


@pytest.mark.parametrize(
    ("trained", "folds"),
    [
        (BOTH, []),
        (BOTH, [{}, {}]),
        ({"conventional"}, [{"conventional": 0.5}]),
        (BOTH, [{"conventional": 0.5}]),
        ({"third"}, [figures(0.1, 0.2, 0.3)]),
    ],
)
def test_nothing_to_compare(trained: set[str], folds: list[dict[str, float]]) -> None:
    assert preferred_mode(trained, folds) is None


def test_mode_that_one_fold_lacks_is_not_compared() -> None:
    found = preferred_mode(BOTH, [figures(0.5, 0.9, 0.6), {"conventional": 0.5, "ensemble": 0.6}])
    assert found is not None and found.mode.name == "ensemble" and set(found.dice) == {"ensemble", "conventional"}


def summary(**cases: tuple[float, ...]) -> dict[str, Any]:
    """What nnU-Net writes: the Dice of class 1, 2, ... by case."""
    return {
        "metric_per_case": [
            {
                "prediction_file": f"/masks/{case}.nii.gz",
                "metrics": {str(label): {"Dice": dice, "IoU": 0.0} for label, dice in enumerate(values, 1)},
            }
            for case, values in cases.items()
        ]
    }


def test_foreground_dice_is_the_mean_of_the_classes_means() -> None:
    # class 1: (0.2 + 0.6) / 2 = 0.4; class 2: 0.8, unknown in the second case
    dice = foreground_dice({"ensemble": summary(a=(0.2, 0.8), b=(0.6, math.nan))}, {"a.nii.gz", "b.nii.gz"})
    assert dice == {"ensemble": pytest.approx(0.6)}


def test_class_without_dice_in_one_mode_counts_in_none() -> None:
    summaries = {"conventional": summary(a=(0.5, math.nan)), "foundation": summary(a=(0.7, 0.0))}
    assert foreground_dice(summaries, {"a.nii.gz"}) == {"conventional": 0.5, "foundation": 0.7}


def test_nothing_is_known_without_any_class() -> None:
    assert foreground_dice({"conventional": summary(a=(math.nan,))}, {"a.nii.gz"}) == {}


def test_masks_left_by_an_earlier_split_do_not_count() -> None:
    summaries = {"conventional": summary(old=(1.0,), a=(0.3,)), "foundation": summary(a=(0.4,))}
    assert foreground_dice(summaries, {"a.nii.gz"}) == {"conventional": 0.3, "foundation": 0.4}


def test_figures_are_those_of_their_training(tmp_path: Path) -> None:
    assert read_validation_dice(tmp_path, "this") == {}
    write_validation_dice(tmp_path, "this", figures(0.1, 0.2, 0.3))
    assert read_validation_dice(tmp_path, "this") == figures(0.1, 0.2, 0.3)
    assert read_validation_dice(tmp_path, "other") == read_validation_dice(tmp_path, None) == {}
    (tmp_path / "synfoc3d_validation.json").write_text('{"training": null, "foreground_dice": {"ensemble": 0.5}}')
    assert read_validation_dice(tmp_path, None) == {}  # of no training, as the checkpoint's is not known


NAN = '{"training": "this", "foreground_dice": {"ensemble": NaN}}'


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"training": "this", "foreground_dice": {"ensemble": "high"}}', NAN])
def test_damaged_figures_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "synfoc3d_validation.json").write_text(text)
    with pytest.raises(UserError, match=r"synfoc3d_validation\.json is damaged.*name a network with --model"):
        read_validation_dice(tmp_path, "this")


def test_module_is_light_to_import() -> None:
    code = "import sys, synfoc3d.preferred_mode; print({'torch', 'numpy', 'nnunetv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
