from pathlib import Path

import pytest

from synfoc3d.inference.report.training_records import ModelRecord, Training
from synfoc3d.inference.report.trainings import differing_settings

SETTINGS = {
    "epochs": 3,
    "foundation": {"name": "lite_medsam", "image_size": 128},
    "optimizers": {"conventional": {"lr": 0.1}, "foundation": {"lr": 0.2}},
}


def record(foundation, **changes):
    return ModelRecord([Training(Path("fold_0"), {"fold": "0"}, SETTINGS | changes, foundation=foundation)])


def test_settings_of_a_foundation_network_that_is_not_there_are_not_told():
    assert differing_settings({"A": record({"name": "lite_medsam"}), "B": record({}, epochs=4)}) == [
        ("epochs", ["3", "4"]),
        ("foundation.name", ["lite_medsam", "–"]),
        ("optimizers.foundation.lr", ["0.2", "–"]),
    ]


@pytest.mark.parametrize("foundation", [None, {"name": "lite_medsam"}])
def test_settings_stay_where_there_is_one_or_nothing_is_known_of_it(foundation):
    assert differing_settings({"A": record({"name": "lite_medsam"}), "B": record(foundation)}) == []
