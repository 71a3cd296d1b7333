"""summary.json of validation masks is nnU-Net's, but for classes that were not annotated."""

import json
import math
from pathlib import Path

import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from synfoc3d.nnunet.summaries import write_summary

COUNTS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")


def case(name: str, *dice: float) -> dict:
    metrics = {str(key + 1): dict.fromkeys(COUNTS, value) for key, value in enumerate(dice)}
    return {"reference_file": f"/r/{name}", "prediction_file": f"/p/{name}", "metrics": metrics}


@pytest.mark.parametrize("folder", ["validation", "validation_foundation", "validation_ensemble"])
def test_summary_is_nnunets(trained, tmp_path, folder) -> None:
    ours = trained.results() / folder
    references = trained.preprocessed / "gt_segmentations"
    file = tmp_path / "summary.json"
    compute_metrics_on_folder(str(references), str(ours), str(file), SimpleITKIO(), ".nii.gz", [1, 2, 3], None, 1)
    assert json.loads((ours / "summary.json").read_text()) == json.loads(file.read_text())


def test_classes_that_were_not_annotated_are_left_out(tmp_path: Path) -> None:
    mean = write_summary(tmp_path / "summary.json", [case("a", 0.5, math.nan), case("b", 0.7, math.nan)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert mean == summary["foreground_mean"]["Dice"] == pytest.approx(0.6)
    assert summary["mean"]["1"]["Dice"] == pytest.approx(0.6) and math.isnan(summary["mean"]["2"]["Dice"])


def test_nothing_known_is_nan(tmp_path: Path) -> None:
    assert math.isnan(write_summary(tmp_path / "summary.json", [case("a", math.nan)]))
