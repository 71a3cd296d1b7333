"""The table of prediction modes: what is possible with which students, and how answers become one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synfoc3d.errors import UserError
from synfoc3d.prediction_modes import MODES, PredictionMode, default_mode, find_mode, mean, possible_modes

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("trained", "possible", "default"),
    [
        ({"conventional", "foundation"}, ["conventional", "foundation", "ensemble"], "ensemble"),
        ({"conventional"}, ["conventional"], "conventional"),
        ({"foundation"}, ["foundation"], "foundation"),
        ({"conventional", "foundation", "third"}, ["conventional", "foundation", "ensemble"], "ensemble"),
    ],
)
def test_modes_of_a_training(trained: set[str], possible: list[str], default: str) -> None:
    assert [mode.name for mode in possible_modes(trained)] == possible
    best = default_mode(trained)
    assert best is not None and best.name == default


def test_no_mode_for_unknown_students() -> None:
    assert default_mode({"third"}) is None and possible_modes({"third"}) == []


def test_further_mode_is_no_default_where_it_has_as_many_students(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "more", PredictionMode("more", "", ("conventional", "foundation"), mean))
    best = default_mode({"conventional", "foundation"})
    assert best is not None and best.name == "ensemble"


def test_mean_of_probabilities() -> None:
    three = [torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])]
    torch.testing.assert_close(mean(three), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(mean(three[:2]), torch.tensor([0.35, 0.65]))
    assert three[0].tolist() == pytest.approx([0.2, 0.8])  # nothing was overwritten


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="no model 'sam' to predict with. Known: conventional, ensemble, foundation"):
        find_mode("sam")


def test_several_students_need_a_rule() -> None:
    with pytest.raises(ValueError, match="'both' must say how its students are combined"):
        PredictionMode("both", "", ("conventional", "foundation"))


def test_table_is_light_to_import() -> None:
    code = "import sys, synfoc3d.prediction_modes; print({'torch', 'numpy', 'nnunetv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_described_to_users(name: str) -> None:
    assert f"`--model {name}`" in (DOCS / "how-to" / "segment-scans.md").read_text(encoding="utf-8")
