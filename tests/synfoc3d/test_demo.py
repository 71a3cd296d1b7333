"""The demo's whole chain of commands, with one training step per method."""

import json

import pytest

from synfoc3d import demo
from synfoc3d.errors import UserError

SETTINGS = """
epochs: 1
iterations_per_epoch: 1
val_iterations_per_epoch: 1
batch_size: 1
foundation: {name: compact, image_size: 32}
"""


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(SETTINGS)
    monkeypatch.setattr(demo, "PRESET", str(tmp_path / "small.yaml"))
    for name, count in (("TRAIN_PER_SCANNER", 2), ("LABELED", 2), ("TEST_PER_SCANNER", 1)):
        monkeypatch.setattr(demo, name, count)
    for variable in ("raw", "preprocessed", "results", "def_n_proc", "n_proc_DA"):
        monkeypatch.setenv(f"nnUNet_{variable}", "1")  # so that the demo's own values are taken back afterwards
    return tmp_path / "demo"


def test_demo_ends_with_a_table_and_a_picture(small_demo, capsys):
    demo.run_demo(small_demo, "cpu")
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(tuple(demo.MODELS))]
    assert [row.split("  ")[0] for row in rows] == list(demo.MODELS)
    assert "$ synfoc3d import -d 501" in printed
    assert (small_demo / "results" / "overview.png").stat().st_size > 10_000
    results = json.loads((small_demo / "results" / "SynFoC_ensemble.json").read_text())
    assert {case["domain"] for case in results["cases"]} == {"A", "B", "C", "D"}


def test_demo_does_not_write_into_an_existing_folder(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        demo.run_demo(tmp_path, "cpu")
