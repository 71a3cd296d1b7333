"""What one machine does of an experiment: claims, what others do, failures, signals, and the report of the last one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from synfoc3d.engines.processes import Command
from synfoc3d.errors import UserError
from synfoc3d.experiment import chains, failures
from synfoc3d.experiment.chains import claim, run_chain
from synfoc3d.experiment.runs import Experiment, Run
from synfoc3d.files.layout import claim_of, failure_of, training_lock
from synfoc3d.files.locks import Lock, this_process

from .fakes import Fake, make

LEARNING = {
    "sam": {"trainer": "nnUNetTrainerCFRFineTune", "models": {"sam": "foundation"}},
    "low": {"trainer": "nnUNetTrainerSupervised"},
    "cfr": {"trainer": "nnUNetTrainerCFR", "labeler": "sam"},
}
LOW, SYN = "low__A__seed7", "syn__A__seed7"


def named(experiment: Experiment, name: str) -> Run:
    (run,) = [run for run in experiment.runs if run.name == name]
    return run


@contextmanager
def claimed(experiment: Experiment, *names: str) -> Iterator[None]:
    """Another process, as far as this one can tell, works on runs."""
    with ExitStack() as stack:
        for name in names:
            run = named(experiment, name)
            experiment.folder(run).mkdir(parents=True, exist_ok=True)
            stack.enter_context(claim(experiment, run).held())
        yield


def dead_claim(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    folder.mkdir(parents=True, exist_ok=True)
    claim_of(folder).write_text(json.dumps(asdict(replace(this_process(), pid=process.pid))))


def test_run_is_claimed_while_its_commands_run_and_free_afterwards(tmp_path: Path) -> None:
    experiment, held = make(tmp_path), []
    run, fake = named(experiment, LOW), Fake()

    def look(command: Command) -> int:
        held.append(claim(experiment, run).holder() is not None)
        return fake(command)

    assert run_chain(experiment, LOW, look) == 0
    assert held == [True] * 3 and fake.done == ["train", "predict", "evaluate"]
    assert claim(experiment, run).holder() is None


def test_run_of_another_process_is_left_to_it(tmp_path: Path) -> None:
    experiment, fake = make(tmp_path), Fake()
    with claimed(experiment, LOW):
        assert run_chain(experiment, LOW, fake) == 0
    assert not fake.calls


def test_run_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    experiment, fake = make(tmp_path), Fake()
    dead_claim(experiment.folder(named(experiment, LOW)))
    assert run_chain(experiment, LOW, fake) == 0
    assert fake.done == ["train", "predict", "evaluate"]


def test_training_of_a_killed_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, fake, naps = make(tmp_path), Fake(), []
    file = training_lock(experiment.training_folder(named(experiment, LOW)))
    file.parent.mkdir(parents=True)
    with ExitStack() as still_saving:
        still_saving.enter_context(Lock(file, "trains").held())

        def nap(seconds: float) -> None:
            naps.append(len(fake.calls))
            if len(naps) == 2:
                still_saving.close()

        monkeypatch.setattr(chains, "sleep", nap)
        assert run_chain(experiment, LOW, fake) == 0
    assert naps == [0, 0] and len(fake.calls) == 3


def test_training_that_does_not_end_fails_by_its_own_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, fake = make(tmp_path), Fake(failing=("train",))
    file = training_lock(experiment.training_folder(named(experiment, LOW)))
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(chains, "LAST_BREATH", 0.0)
    with Lock(file, "trains").held():
        assert run_chain(experiment, LOW, fake) == 1
    assert fake.done == ["train"]


def test_what_learns_from_a_run_of_another_process_is_left_to_it_too(tmp_path: Path) -> None:
    experiment, fake = make(tmp_path, methods=LEARNING), Fake()
    with claimed(experiment, "sam__A__seed7"):
        assert run_chain(experiment, "sam__A__seed7", fake) == 0
    assert not fake.calls


def test_chain_goes_on_behind_what_another_process_does_of_it(tmp_path: Path) -> None:
    methods = LEARNING | {"again": LEARNING["cfr"]}
    experiment, fake = make(tmp_path, methods=methods), Fake()
    run_chain(make(tmp_path, methods={"sam": LEARNING["sam"]}), "sam__A__seed7", Fake())
    with claimed(experiment, "cfr__A__seed7"):
        assert run_chain(experiment, "again__A__seed7", fake) == 0
    assert {Path(command.variables["nnUNet_results"]).name for command in fake.calls} == {"again__A__seed7"}


def test_last_run_of_the_experiment_is_followed_by_the_report(tmp_path: Path) -> None:
    experiment, first, last, again = make(tmp_path), Fake(), Fake(), Fake()
    run_chain(experiment, SYN, first)
    assert "compare" not in first.done
    run_chain(experiment, LOW, last)
    assert last.done[-1] == "compare" and (tmp_path / "report" / "summary.md").is_file()
    run_chain(experiment, LOW, again)
    assert not again.calls  # it was made of the same evaluations


def test_report_that_fails_is_no_failure_of_the_run(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    run_chain(experiment, SYN, Fake())
    assert run_chain(experiment, LOW, Fake(failing=("compare",))) == 0
    again = Fake()
    run_chain(experiment, LOW, again)
    assert again.done == ["compare"]  # what has failed is not current


def test_failure_is_noted_and_forgotten_when_the_run_succeeds(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    folder = experiment.folder(named(experiment, LOW))
    (folder).mkdir(parents=True)
    (folder / "log.txt").write_text("\n".join(f"line {number}" for number in range(9)) + "\n\n")
    assert run_chain(experiment, LOW, Fake(failing=("predict",))) == 1
    failure = failures.read_failure(folder)
    assert failure is not None
    assert failure.reason == f"synfoc3d predict ended with status 1; see {folder}/log.txt"
    assert (failure.times, failure.at_once, failure.last_lines) == (1, 1, [f"line {n}" for n in range(4, 9)])
    assert run_chain(experiment, LOW, Fake()) == 0
    assert not failure_of(folder).exists()


def test_run_that_fails_at_once_three_times_in_a_row_is_not_started_again(tmp_path: Path) -> None:
    experiment, fake = make(tmp_path), Fake(failing=("train",))
    folder = experiment.folder(named(experiment, LOW))
    assert [run_chain(experiment, LOW, fake) for _ in range(5)] == [1] * 5
    assert fake.done == ["train"] * 3
    failure = failures.read_failure(folder)
    assert failure is not None
    assert f"3 times in a row and is not started again: mend what is wrong, then delete {folder}/failure.json" in (
        failures.describe(failure, folder)
    )
    failure_of(folder).unlink()
    assert run_chain(experiment, LOW, Fake()) == 0


def test_run_that_failed_late_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, fake = make(tmp_path), Fake(failing=("train",))
    for seconds in (59, 59, 61, 59, 59):  # the third one came late: counting begins anew
        clock = iter([0.0, 0.0, float(seconds)])  # the wait for an earlier training, the begin and the end
        monkeypatch.setattr(chains, "monotonic", lambda clock=clock: next(clock))
        run_chain(experiment, LOW, fake)
    failure = failures.read_failure(experiment.folder(named(experiment, LOW)))
    assert failure is not None and (failure.times, failure.at_once) == (5, 2)


@pytest.mark.parametrize("status", [-15, 143, 130])
def test_command_that_was_asked_to_end_has_not_failed(status: int, tmp_path: Path) -> None:
    experiment, calls = make(tmp_path), []
    assert run_chain(experiment, LOW, lambda command: calls.append(command) or status) == abs(status) + 128 * (
        status < 0
    )
    assert len(calls) == 1
    assert not failure_of(experiment.folder(named(experiment, LOW))).exists()


def test_signal_that_ended_a_command_is_handed_on(tmp_path: Path) -> None:
    experiment = make(tmp_path, methods=LEARNING)
    assert run_chain(experiment, "sam__A__seed7", lambda _: -9) == 137  # and the rest of the chain waits for it
    failure = failures.read_failure(experiment.folder(named(experiment, "sam__A__seed7")))
    assert failure is not None and "synfoc3d train was ended by SIGKILL" in failure.reason
    assert not experiment.folder(named(experiment, "cfr__A__seed7")).exists()


def test_commands_that_leave_no_result_are_a_failure(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    assert run_chain(experiment, LOW, lambda _: 0) == 1
    failure = failures.read_failure(experiment.folder(named(experiment, LOW)))
    assert failure is not None and failure.reason.startswith("All commands ended well, but not all results are there")


def test_run_that_does_not_exist_is_named_with_the_one_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no run 'low__A__sed7' in {tmp_path}. Did you mean 'low__A__seed7'"):
        run_chain(make(tmp_path), "low__A__sed7", Fake())


def test_damaged_record_of_a_failure_counts_as_none(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    folder = experiment.folder(named(experiment, LOW))
    folder.mkdir(parents=True)
    for text in ("{", "[]", '{"reason": "x"}'):
        failure_of(folder).write_text(text)
        assert failures.read_failure(folder) is None
