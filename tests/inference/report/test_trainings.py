from pathlib import Path

import pytest

from synfoc3d.inference.report.training_records import ModelRecord, Training
from synfoc3d.inference.report.trainings import differing_settings

SETTINGS = {
    "epochs": 3,
    "foundation": {"name": "lite_medsam", "image_size": 128},
    "optimizers": {"conventional": {"lr": 0.1}, "foundation": {"lr": 0.2}},
}


def record(weights, **changes):
    return ModelRecord([Training(Path("fold_0"), {"fold": "0"}, SETTINGS | changes, foundation=weights)])


def test_settings_of_a_foundation_network_are_compared_between_those_that_have_one():
    medsam, sam = {"name": "lite_medsam"}, {"name": "sam", "image_size": 128}
    a, b = record(medsam), record({}, epochs=4)
    assert differing_settings({"A": a, "B": b}) == [("epochs", ["3", "4"])]
    rows = differing_settings({"A": a, "B": b, "C": record(sam, foundation=sam)})
    assert rows == [("epochs", ["3", "4", "3"]), ("foundation.name", ["lite_medsam", "–", "sam"])]


@pytest.mark.parametrize("weights", [None, {"name": "lite_medsam"}])
def test_settings_stay_where_there_is_one_or_nothing_is_known_of_it(weights):
    assert differing_settings({"A": record({"name": "lite_medsam"}), "B": record(weights)}) == []
