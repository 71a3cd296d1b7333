"""Where runs stand, read from their folders; and what a caller does about it."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from synfoc3d.engines.base import Engine
from synfoc3d.engines.processes import Command
from synfoc3d.engines.table import State
from synfoc3d.errors import UserError
from synfoc3d.experiment import execution
from synfoc3d.experiment.chains import run_chain
from synfoc3d.experiment.execution import refuse_changed_plan, run_experiment
from synfoc3d.experiment.standing import Standing, progress, repeatable_failures
from synfoc3d.files import locks
from synfoc3d.files.layout import claim_of
from synfoc3d.files.locks import this_process

from .fakes import PLAN, Fake, InThisProcess, go, make
from .test_chains import LEARNING, LOW, SYN, claimed, dead_claim, named

EPOCH = "\n11:00:00.1: Epoch {} \n11:00:00.1: Current learning rate: 0.01 \n11:00:09.2: Epoch time: {} s \n"
TWO = EPOCH.format(0, 9.0) + EPOCH.format(1, 11.0)
TRAIN = "\n$ nnUNet_results=/my/synfoc3d synfoc3d train 501 2d 0\n"


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "LOOK_EVERY", 0.01)


@pytest.mark.parametrize(
    ("text", "epochs", "expected"),
    [
        ("", 10, ("train", None)),
        ("\n$ synfoc3d experiment o/plan.yaml -o o --run x\n", 10, ("", None)),
        (TRAIN + "loading\n", 10, ("train", None)),
        (TRAIN + "\n12:00: Epoch 0 \n", 10, ("train, epoch 1 of 10", None)),
        (
            TRAIN + EPOCH.format(0, 9.0) + EPOCH.format(1, 11.0) + "\n12:00: Epoch 2 \n",
            10,
            ("train, epoch 3 of 10", 80.0),
        ),
        (TRAIN + EPOCH.format(0, 9.0) + EPOCH.format(1, 11.0), None, ("train, epoch 2", None)),
        (TRAIN + EPOCH.format(7, 9.0) + "\n$ a=b synfoc3d predict -i x\n", 10, ("predict", None)),
        # of a training that was interrupted, and goes on
        (TRAIN + EPOCH.format(4, 99.0) + TRAIN + "\n12:00: Epoch 5 \n", 10, ("train, epoch 6 of 10", None)),
    ],
)
def test_progress_is_read_from_the_log(
    text: str, epochs: int | None, expected: tuple[str, float | None], tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(text)
    assert progress(log, epochs) == expected


def test_time_left_is_that_of_the_recent_epochs(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        TRAIN + "".join(EPOCH.format(n, 100.0) for n in range(5)) + "".join(EPOCH.format(n, 2.0) for n in range(5, 15))
    )
    assert progress(log, 20) == ("train, epoch 15 of 20", 12.0)


def test_end_of_a_long_log_is_enough(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(TRAIN + "x" * 10**6 + EPOCH.format(3, 2.0))
    assert progress(log, 10) == ("train, epoch 4 of 10", 14.0)


def test_states_of_runs(tmp_path: Path) -> None:
    experiment = make(
        tmp_path, methods=PLAN["methods"] | {"bad": PLAN["methods"]["low"] | {"models": {"bad": "conventional"}}}
    )
    experiment = replace(experiment, plan=experiment.plan.model_copy(update={"seeds": (7, 8)}))
    run_chain(experiment, LOW, Fake())
    run_chain(experiment, "bad__A__seed7", Fake(failing=("train",)))
    dead_claim(experiment.folder(named(experiment, "low__A__seed8")))
    with claimed(experiment, SYN):
        folder = experiment.folder(named(experiment, SYN))
        (folder / "log.txt").write_text(TRAIN + EPOCH.format(0, 3.0))
        training = experiment.training_folder(named(experiment, SYN))
        training.mkdir(parents=True)
        (training / "synfoc3d.yaml").write_text("settings: {epochs: 4}")
        rows = {row.name: row for row in Standing(experiment, experiment.runs).rows()}
    assert {name: row.state for name, row in rows.items()} == {
        LOW: State.DONE, SYN: State.RUNNING, "bad__A__seed7": State.FAILED,
        "low__A__seed8": State.WAITING, "syn__A__seed8": State.WAITING, "bad__A__seed8": State.WAITING,
    }  # fmt: skip
    assert (rows[SYN].doing, rows[SYN].left) == ("train, epoch 1 of 4", 12.0)
    assert rows["bad__A__seed7"].remark.startswith("synfoc3d train ended with status 1; see ")


def test_failure_of_an_earlier_call_waits_to_be_repeated(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    run_chain(experiment, LOW, Fake(failing=("train",)))
    standing = Standing(experiment, experiment.runs, repeatable_failures(experiment, experiment.runs))
    assert set(standing.states().values()) == {State.WAITING}
    run_chain(experiment, LOW, Fake(failing=("train",)))
    assert standing.states()[named(experiment, LOW)] is State.FAILED


def test_run_that_is_not_started_again_is_told_with_what_to_do(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    for _ in range(3):
        with pytest.raises(UserError):
            go(experiment, Fake(failing=("train 501 2d 0 -tr nnUNetTrainerSupervised",)))
    fake = Fake()
    with pytest.raises(
        UserError, match=r"1 of 2 runs failed.*\n  low__A__seed7: synfoc3d train .*in a row and is not st"
    ):
        go(experiment, fake)
    assert not fake.calls


class Recorder(Engine):
    """Remembers the rounds of commands that it is given, and does what a function says with them."""

    name, slots = "recorder", None

    def __init__(self, act: Callable[[list[str]], dict[str, str]]) -> None:
        self.act, self.rounds = act, list[list[str]]()

    def run(self, commands: Mapping[str, Command], look: Callable[[], None]) -> dict[str, str]:
        look()
        self.rounds.append([*commands])
        assert len(self.rounds) < 5
        return self.act([*commands])


def test_command_of_a_chain_names_plan_run_and_device(tmp_path: Path) -> None:
    experiment = make(tmp_path, "cpu", methods=LEARNING)
    (chain,) = [chain for chain in experiment.chains if len(chain) == 2]
    command = experiment.chain_command(chain)
    assert " ".join(command.arguments) == (
        f"experiment {tmp_path}/plan.yaml -o {tmp_path} --run sam__A__seed7 "
        f"--expect {experiment.plan.fingerprint(['sam', 'cfr'])} -device cpu"
    )
    assert command.log == tmp_path / "runs/sam__A__seed7/log.txt"


def test_runs_of_another_caller_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, other, mine = make(tmp_path), threading.Event(), Fake()

    def others(command: Command) -> int:
        other.wait(20)
        return Fake()(command)

    thread = threading.Thread(target=run_chain, args=(experiment, SYN, others))
    monkeypatch.setattr(execution.time, "sleep", lambda _: other.set())  # which is only called to wait
    thread.start()
    while Standing(experiment, experiment.runs).states()[named(experiment, SYN)] is not State.RUNNING:
        pass
    engine = Recorder(
        lambda names: InThisProcess(experiment, mine).run(dict.fromkeys(names, Command(("x",))), lambda: None)
    )
    told = run_experiment(experiment, engine, run=mine)
    thread.join()
    assert engine.rounds == [[LOW]]
    assert [command.arguments[0] for command in mine.calls] in (
        ["train", "predict", "evaluate"], ["train", "predict", "evaluate", "compare"],
    )  # fmt: skip
    assert "| both    | 50.00 |" in told


def test_run_that_seems_free_by_a_wrong_clock_alone_is_not_tried_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine holds it, and this one's clock is ahead by more than the time after which a claim is dead."""
    experiment, waits = make(tmp_path), list[float]()
    lock = claim_of(experiment.folder(named(experiment, SYN)))
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps(asdict(replace(this_process(), machine="another"))))
    monkeypatch.setattr(locks, "time", lambda: time.time() + 2 * locks.SILENCE)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        lock.unlink()

    monkeypatch.setattr(execution.time, "sleep", wait)
    here = InThisProcess(experiment, Fake())
    engine = Recorder(lambda names: here.run(dict.fromkeys(names, Command(("x",))), lambda: None))
    run_experiment(experiment, engine, run=Fake())
    assert engine.rounds == [[LOW, SYN], [SYN], [SYN]] and waits == [execution.AGAIN_AFTER]


def test_run_whose_process_was_lost_is_handed_out_again(tmp_path: Path) -> None:
    experiment, lost = make(tmp_path), [True]

    def act(names: list[str]) -> dict[str, str]:
        if lost.pop() if lost else False:
            dead_claim(experiment.folder(named(experiment, LOW)))
            names.remove(LOW)
        for name in names:
            run_chain(experiment, name, Fake())
        return {}

    engine = Recorder(act)
    run_experiment(experiment, engine, run=Fake())
    assert engine.rounds == [[LOW, SYN], [LOW]]


def test_chain_that_the_engine_gave_up_is_told_with_its_reason(tmp_path: Path) -> None:
    engine = Recorder(lambda names: dict.fromkeys(names, "node7 does not see the folder"))
    with pytest.raises(UserError, match=r"2 of 2 runs failed.*\n  low__A__seed7: node7 does not see the folder\n  syn"):
        run_experiment(make(tmp_path), engine)
    assert len(engine.rounds) == 1


def test_report_of_the_last_run_is_not_written_twice(tmp_path: Path) -> None:
    fake = Fake()
    go(make(tmp_path), fake)
    assert fake.done.count("compare") == 1


def test_plan_that_was_changed_since_a_run_was_queued_is_noticed(tmp_path: Path) -> None:
    before = make(tmp_path)
    expected = before.plan.fingerprint(["low"])
    more = {"mt": {"trainer": "nnUNetTrainerMeanTeacher"}}
    for grown in ({"methods": PLAN["methods"] | more}, {"seeds": [7, 8]}, {"cluster": {"cpus": 3}}):
        refuse_changed_plan(make(tmp_path, **grown), LOW, expected)
    low = PLAN["methods"]["low"] | {"settings": {"epochs": 3}}
    for changed in ({"settings": {"epochs": 3}}, {"methods": PLAN["methods"] | {"low": low}}):
        with pytest.raises(UserError, match=r"plan.yaml was changed after low__A__seed7 was queued, which is not run"):
            refuse_changed_plan(make(tmp_path, **changed), LOW, expected)


def test_plan_that_somebody_else_wrote_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    with pytest.raises(UserError, match="is the plan of another experiment"):
        go(make(tmp_path, settings={"epochs": 3}), Fake())


def test_cluster_section_may_change(tmp_path: Path) -> None:
    go(make(tmp_path), Fake())
    go(make(tmp_path, cluster={"cpus": 4, "partition": "gpu"}), Fake())
    assert "partition: gpu" in (tmp_path / "plan.yaml").read_text()
