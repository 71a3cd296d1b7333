"""The demo's whole chain of commands, with one step of one training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from synfoc3d.cli import main
from synfoc3d.commands import demo
from synfoc3d.errors import UserError
from synfoc3d.experiment.plan import read_plan

FORKED = Path(__file__).parents[2] / "forked"
SMALL = {"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 1}


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a demo of few scans, with the supervised training alone."""
    plan = read_plan("demo").model_dump(mode="json", exclude={"baseline"})
    plan["methods"] = {"supervised": plan["methods"]["supervised"] | {"settings": SMALL}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(demo, "PLAN", str(tmp_path / "small.yaml"))
    monkeypatch.setenv("PYTHONPATH", str(FORKED), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked worker hangs where its parent had further threads
    for name, count in (("TRAIN_PER_SCANNER", 2), ("LABELED", 2), ("TEST_PER_SCANNER", 1)):
        monkeypatch.setattr(demo, name, count)
    return tmp_path / "demo"


def test_demo_ends_with_the_report_of_its_experiment(small_demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo.run_demo(small_demo, "cpu", seed=3)
    printed = capfd.readouterr().out
    report = small_demo / "experiment" / "report" / "fold0__seed3" / "report.html"
    assert report.is_file() and f"Report: {report}\n" in printed
    assert "$ synfoc3d import -d 501 -n Demo --labeled ./scans/labeled --unlabeled ./scans/unlabeled\n" in printed
    assert "-o ./experiment --seeds 3 -device cpu\n# Results" in printed  # in the order in which it happens
    assert re.search(r"\| model +\| labels of +\| +A \| +B \| +C \| +D \|", printed)
    assert "Curves: " in printed and printed.rstrip().endswith(f"Everything lies in {small_demo}")


def test_demo_does_not_write_into_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        demo.run_demo(tmp_path, "cpu")


def test_failed_command_ends_the_demo_and_names_its_log(
    small_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    monkeypatch.setattr(demo, "execute", lambda command: ran.append(command.arguments[0]) or len(ran) - 1)
    with pytest.raises(SystemExit, match="1"):
        main(["demo", "-o", str(small_demo), "-device", "cpu"])
    assert ran == ["import", "preprocess"]
    log = small_demo / "demo.log"
    assert capsys.readouterr().err == f"synfoc3d demo: synfoc3d preprocess ended with status 1; see {log}.\n"


def test_demo_and_command_line_can_be_imported_alone() -> None:
    code = "import sys, synfoc3d.{}; sys.exit('synfoc3d.{}' in sys.modules)"
    for first, second in (("commands.demo", "cli"), ("cli", "commands.demo")):
        assert subprocess.run([sys.executable, "-c", code.format(first, second)]).returncode == 0


def test_demo_preprocesses_in_one_process(tmp_path: Path) -> None:
    """Each worker imports torch for seconds; all scans together take one."""
    preprocess = demo._commands(tmp_path, "cpu", 0)[1]
    assert preprocess.arguments[-2:] == ("-np", "1")
