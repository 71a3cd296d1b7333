"""``synfoc3d experiment``: where it runs, one run of it, how it stands, and mistakes in its options."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from synfoc3d.cli import main
from synfoc3d.config import dump
from synfoc3d.engines.local import LocalEngine
from synfoc3d.engines.settings import ClusterSettings, read_cluster
from synfoc3d.errors import UserError
from synfoc3d.experiment import chains, execution
from synfoc3d.experiment.plan import parse_plan

PLAN = {
    "dataset": 501,
    "splits": [{"fold": 0}],
    "methods": {"low": {"trainer": "nnUNetTrainerSupervised"}},
    "seeds": [7, 8],
    "cluster": {"cpus": 3},
}
RUN = "low__fold0__seed7"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Folder of an experiment that has written its plan."""
    (tmp_path / "plan.yaml").write_text(dump(parse_plan(PLAN, "plan").model_dump(mode="json")))
    return tmp_path


def call(project: Any, *arguments: object) -> None:
    project.command("experiment", *arguments)


def test_status_is_read_from_the_folder_alone(project: Any, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(project, "demo", "-o", output, "--status")
    printed = capsys.readouterr().out
    assert printed.count("waiting") == 3 and RUN in printed and "2 waiting" in printed
    assert [path.name for path in output.iterdir()] == ["plan.yaml"]


def test_status_of_no_experiment_is_refused(project: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        call(project, "demo", "-o", tmp_path, "--status")
    assert "holds no experiment: no plan.yaml. A call without --status starts one." in capsys.readouterr().err


def test_one_run_is_done_with_the_device_and_ends_with_its_status(
    project: Any, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run_chain(experiment: Any, name: str) -> int:
        seen.append((name, experiment.device, [run.name for run in experiment.runs]))
        return 137

    monkeypatch.setattr(chains, "run_chain", run_chain)
    expected = parse_plan(PLAN, "plan").fingerprint(["low"])
    with pytest.raises(SystemExit, match="137"):
        call(project, output / "plan.yaml", "-o", output, "--run", RUN, "--expect", expected, "-device", "cuda")
    assert seen == [(RUN, "cuda", [RUN, "low__fold0__seed8"])]


def test_run_of_a_plan_that_was_changed_is_refused(
    project: Any, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        call(project, output / "plan.yaml", "-o", output, "--run", RUN, "--expect", "0" * 12)
    assert f"plan.yaml was changed after {RUN} was queued" in capsys.readouterr().err


def engine_of(project: Any, output: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> LocalEngine:
    """Return the engine that an experiment is run with."""
    seen = []
    monkeypatch.setattr(execution, "run_experiment", lambda _, engine, *parts: seen.append(engine) or "")
    monkeypatch.setattr("synfoc3d.experiment.checks.check_methods", lambda _: None)
    (output / "given.yaml").write_text(yaml.safe_dump(PLAN))
    call(project, output / "given.yaml", "-o", output, *options)
    return seen[0]


def test_plan_says_what_each_run_gets(project: Any, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    engine = engine_of(project, output, monkeypatch, "--jobs", 2)
    assert engine.slots == 2 and [one["OMP_NUM_THREADS"] for one in engine._variables] == ["3", "3"]


def test_file_of_the_cluster_is_taken_for_the_section(
    project: Any, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (output / "cluster.yaml").write_text("cpus: 5")
    engine = engine_of(project, output, monkeypatch, "--cluster", output / "cluster.yaml")
    assert engine.slots == 1 and engine._variables[0]["OMP_NUM_THREADS"] == "5"


def test_cores_of_a_cluster_have_a_default() -> None:
    assert (ClusterSettings().cores, ClusterSettings(cpus=2).cores) == (8, 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("cpu: 4", r"cluster.yaml: unknown setting 'cpu'. Did you mean 'cpus'"), ("cpus: 0", "cluster.yaml: cpus: .*0"),
     ("", "cluster.yaml is empty, but must hold a mapping of the keys"), (None, r"must be a YAML file that exists")],
)  # fmt: skip
def test_mistake_in_the_file_of_the_cluster_is_named(text: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_cluster(file)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--on", "slurm", "--gpus", "0", "--jobs", "2"],
            "--gpus and --jobs can only be given with --on local; what --on slurm gets",
        ),
        (["--jobs", "0"], "--jobs must be at least 1, but is 0"),
        (["--expect", "x"], "--expect belongs to --run"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], sentence: str, project: Any, output: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit, match="1"):
        engine_of(project, output, monkeypatch, *options)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0,0", "a", "0,", "-1", "1.5"])
def test_numbers_of_gpus_are_different_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["experiment", "demo", "-o", "x", f"--gpus={text}"])
    assert f"'{text}' must be different numbers from 0, such as 0,1,2,3" in capsys.readouterr().err


def test_worker_and_status_start_without_torch() -> None:
    code = (
        "import sys; from synfoc3d.experiment import chains, execution, standing; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'submitit')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_command_line_starts_without_what_engines_need() -> None:
    code = (
        "import sys; from synfoc3d.cli import _parser; _parser(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'submitit', 'pydantic', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
