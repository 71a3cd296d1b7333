"""Several processes that share each batch take the steps of one, and end as one; on the CPU, through gloo."""

import json
import os
import signal
import subprocess
import sys
from time import monotonic, sleep
from types import SimpleNamespace

import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from torch import nn
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

from synfoc3d.errors import UserError
from synfoc3d.files.layout import SUMMARY_FILE
from synfoc3d.files.splits import Split, save_splits
from synfoc3d.nnunet import launch as launching
from synfoc3d.nnunet.ranks import Ranks
from synfoc3d.trainers.life_cycle.parallel import refuse_unshared
from synfoc3d.trainers.life_cycle.trainer import SemiSupervisedTrainer

from ..ranks import in_ranks

CLOSE = 1e-5
COURSE = {"epochs": 3, "iterations_per_epoch": 2, "val_iterations_per_epoch": 3, "save_every_minutes": 1e6}
COMPACT = {"name": "compact", "image_size": 64}
STEPS = {  # one batch of three samples: parts of two and of one
    "SynFoC 2d": ("nnUNetTrainerSynFoC", "2d", {}),
    "SynFoC 3d": ("nnUNetTrainerSynFoC", "3d_fullres", {"method": {"window": 3, "bidirectional": True, "tau": 0}}),
    "SynFoCBase 2d": ("nnUNetTrainerSynFoCBase", "2d", {"conventional": {"loss": "paper"}}),
    "MeanTeacher 2d": ("nnUNetTrainerMeanTeacher", "2d", {}),
    "MeanTeacher 3d": ("nnUNetTrainerMeanTeacher", "3d_fullres", {"method": {"consistency_on": "all"}}),
    "SAMed 2d": ("nnUNetTrainerSAMed", "2d", {}),
    "SAMed 3d": ("nnUNetTrainerSAMed", "3d_fullres", {"method": {"window": 2}}),
    "ACMT 3d": ("nnUNetTrainerACMT", "3d_fullres", {"method": {"threshold": [0.5, 0.9]}}),
    "CFR's first stage": ("nnUNetTrainerCFRFineTune", "3d_fullres", {}),
    "ECT 3d": ("nnUNetTrainerECT", "3d_fullres", {"method": {"center_share": 0.5}, "foundation": COMPACT}),
    "MagicNet 2d": ("nnUNetTrainerMagicNet", "2d", {}),
    "SelfTraining 2d": ("nnUNetTrainerSelfTraining", "2d", {}),
}


@pytest.fixture(scope="module")
def project(project, tmp_path_factory):
    """The project with more validation cases than processes, and a number that they cannot share evenly."""
    copy = project.copy(tmp_path_factory.mktemp("three"))
    val = ("Btrain001", "Atrain003", "Atrain004")
    save_splits(copy.preprocessed, [Split(("Atrain001", "Atrain002"), ("Btrain002", "Btrain003"), val)])
    return copy


def take_steps(project):
    """Take two steps of every training: what each logs, the gradients of the first one, and random numbers behind."""
    results = {}
    for name, (trainer, configuration, changes) in STEPS.items():
        with project.active("steps"):
            one = project.trainer(trainer, configuration, batch_size=3, **changes)
            one.on_train_start()
            one.on_train_epoch_start()
            logs, gradients = [], {}
            for _ in range(2):
                logs.append(one.train_step(next(one.dataloader_train)))
                gradients = gradients or {
                    name: parameter.grad.clone()
                    for name, parameter in one.method.named_parameters()
                    if parameter.grad is not None
                }
            state = {key: value.clone() for key, value in one.method.state_dict().items()}
        results[name] = logs, gradients, state, torch.rand(()).item()
    return results


@pytest.fixture(scope="module")
def both(project, tmp_path_factory):
    """The steps of two ranks, and those of one process."""
    alone = take_steps(project)
    return in_ranks(2, lambda: take_steps(project), tmp_path_factory.mktemp("steps")), alone


@pytest.mark.parametrize("name", STEPS)
def test_two_ranks_take_the_steps_of_one_process(both, name):
    ranks, (logs, gradients, state, drawn) = [results[name] for results in both[0]], both[1][name]
    for its_logs, its_gradients, _, its_drawn in ranks:
        assert its_drawn == drawn
        for one, other in zip(logs, its_logs, strict=True):
            assert other == pytest.approx(one, rel=CLOSE, abs=1e-6, nan_ok=True)
        assert its_gradients.keys() == gradients.keys()
        size = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        errors = [(its_gradients[name] - gradient).norm() for name, gradient in gradients.items()]
        assert torch.stack(errors).norm() <= CLOSE * size
    first, second = (its_state for _, _, its_state, _ in ranks)
    assert first.keys() == state.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- whole trainings ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def forking():
    """Processes are forked, as each spawned one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "START_METHOD", "fork")
        yield


def train(project, results, processes, *options, course=COURSE):
    arguments = ["train", "501", "2d", "0", "-device", "cpu", "-num_gpus", processes, *options]
    if "--c" not in options:
        arguments += ["--config", project.settings(**course)]
    project.command(*arguments, results=results)


@pytest.fixture(scope="module")
def whole(project):
    """Folders of the training of one process, and of the same one by two."""
    for count in (1, 2):
        train(project, f"by_{count}", count)
    return project.results("by_1"), project.results("by_2")


def figures(folder, read_log):
    return [{key: float(value or "nan") for key, value in row.items()} for row in read_log(folder)]


def final(folder):
    return torch.load(folder / "checkpoint_final.pth", weights_only=True)


def assert_close_trainings(first, second, read_log):
    rows = [figures(folder, read_log) for folder in (first, second)]
    for one, other in zip(*rows, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6, nan_ok=True)
    one, other = (final(folder)["synfoc3d"]["method"] for folder in (first, second))
    assert one.keys() == other.keys()
    weights, others = (torch.cat([state[key].flatten().float() for key in one]) for state in (one, other))
    assert (weights - others).norm() <= 1e-4 * weights.norm()  # Adam raises small gradients


def test_two_processes_train_and_validate_as_one(whole, read_log):
    assert_close_trainings(*whole, read_log)
    one, two = ({file.relative_to(folder).name for file in folder.rglob("*") if file.is_file()} for folder in whole)
    assert {name for name in one if "training_log" not in name} == {name for name in two if "training_log" not in name}
    assert len([name for name in two if "training_log" in name]) == 1  # the others write none
    for folder in ("validation", "validation_foundation", "validation_ensemble"):
        scores = [json.loads((root / folder / SUMMARY_FILE).read_text()) for root in whole]
        assert [len(score["metric_per_case"]) for score in scores] == [3, 3]
        assert scores[1]["foreground_mean"] == pytest.approx(scores[0]["foreground_mean"], rel=1e-4)


def test_command_starts_processes_with_workers_that_train_as_one(project, read_log):
    """Nothing is forked or made short: the processes, their workers and nnU-Net's search for the trainer."""
    options, course = ("-tr", "nnUNetTrainerSupervised"), COURSE | {"epochs": 1}
    train(project, "plain", 1, *options, course=course)
    with project.active("started"):
        line = [sys.executable, "-m", "synfoc3d", "train", "501", "2d", "0", "-device", "cpu", "-num_gpus", "2"]
        line += [*options, "--config", str(project.settings(**course))]
        done = subprocess.run(line, env={**os.environ, "nnUNet_n_proc_DA": "2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, started = (project.results(name, "nnUNetTrainerSupervised") for name in ("plain", "started"))
    assert_close_trainings(plain, started, read_log)


def test_training_goes_on_under_another_number_of_processes(project, whole, read_log):
    """Two processes are interrupted, then one, then two finish: it is the uninterrupted training."""

    def interrupt(patch, step, leader):
        def sending(self, *arguments):
            if self.step == step and self.ranks.rank == 0:
                for _ in range(2):  # as from a scheduler, and from what it ended
                    os.kill(os.getppid() if leader else os.getpid(), signal.SIGTERM)
                    sleep(0.2)
            return before(self, *arguments)

        def slowly(self, filename):
            sleep(0.5)
            save(self, filename)

        before, save = SemiSupervisedTrainer.train_step, SemiSupervisedTrainer.save_checkpoint
        patch.setattr(SemiSupervisedTrainer, "train_step", sending)
        patch.setattr(SemiSupervisedTrainer, "save_checkpoint", slowly)

    for count, step, options in ((2, 1, ()), (1, 3, ("--c",))):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            interrupt(patch, step, leader=count == 2)
            train(project, "changing", count, *options)
        assert ended.value.code == 143
        latest = torch.load(project.results("changing") / "checkpoint_latest.pth", weights_only=True)
        steps = latest["current_epoch"] * 2 + len(latest["synfoc3d"]["unfinished_epoch"])
        assert step < steps <= step + 2  # a step or two pass until the signal has gone around
    train(project, "changing", 2, "--c")
    assert_close_trainings(whole[0], project.results("changing"), read_log)
    logs = sorted(project.results("changing").glob("training_log*"))
    assert "began with processes 2, now 1: it goes on" in "".join(log.read_text() for log in logs)


def test_killed_process_ends_the_others_with_a_sentence(project, capfd):
    """Also where the launcher, on a busy machine, looks so late that the others may have ended, too."""

    def late(self):
        sleep(1)
        return poll(self)

    def die(self, *arguments):
        if self.ranks.rank == 1 and self.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(self, *arguments)

    before, began, poll = SemiSupervisedTrainer.train_step, monotonic(), MultiprocessContext._poll
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="1"):
        patch.setattr(SemiSupervisedTrainer, "train_step", die)
        patch.setattr(MultiprocessContext, "_poll", late)
        train(project, "killed", 2)
    said = capfd.readouterr().err
    assert said.endswith(
        "synfoc3d train: Process 1 of the 2 of this training was ended by SIGKILL, most likely because memory ran out, "
        "and the others with it: continue with --c.\n"
    )
    assert "Traceback" not in said and monotonic() - began < 30
    assert not list(project.results("killed").glob("*.lock"))


def test_failed_process_says_why_for_all(project, capfd):
    """One process alone finds something wrong in a batch: it stops all, and the steps before are kept."""

    def fail(batches):
        if batches.numbers and os.environ["RANK"] == "1":
            raise UserError("This batch is broken.")
        batches.numbers.append(1)
        return next(batches)

    from synfoc3d.trainers.life_cycle import running

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="1"):
        patch.setattr(SingleThreadedAugmenter, "numbers", [], raising=False)
        patch.setattr(running, "next_batch", fail)
        train(project, "failed", 2)
    said = capfd.readouterr().err
    assert said.endswith("synfoc3d train: This batch is broken.\n") and "Traceback" not in said
    latest = torch.load(project.results("failed") / "checkpoint_latest.pth", weights_only=True)
    assert len(latest["synfoc3d"]["unfinished_epoch"]) == 1


def test_error_that_nobody_foresaw_is_shown(project, capfd):
    def fail(self, *arguments):
        return 1 / 0

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="1"):
        patch.setattr(SemiSupervisedTrainer, "train_step", fail)
        train(project, "unforeseen", 2)
    said = capfd.readouterr().err
    assert said.index("ZeroDivisionError: division by zero") < said.index("failed; its error is above.")


def test_differing_networks_are_noticed_at_the_end_of_an_epoch(project, capfd):
    def disturb(self):
        if self.ranks.rank == 1:
            with torch.no_grad():
                next(self.method.foundation_teacher.parameters()).add_(1e-6)
        return before(self)

    before = SemiSupervisedTrainer.on_validation_epoch_start
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="1"):
        patch.setattr(SemiSupervisedTrainer, "on_validation_epoch_start", disturb)
        train(project, "differing", 2)
    assert "After epoch 0 process 1 of 2 holds other networks than process 0, so" in capfd.readouterr().err


# --- nnU-Net's own command ----------------------------------------------------------------------------------------


def test_stock_command_trains_by_several_processes(project, whole, read_log):
    """nnU-Net's own start, with another device, and the processes that this device can have."""
    from nnunetv2.run import run_training as stock
    from torch import multiprocessing as torch_multiprocessing

    from synfoc3d.nnunet.training import register_trainers

    def spawn(function, args, nprocs, join):
        torch_multiprocessing.start_processes(function, args, nprocs, join, start_method="fork")

    def gloo(_, **place):
        before(backend="gloo", **place)

    before = stock.dist.init_process_group
    with project.active("stock_ranks") as patch:
        register_trainers()
        patch.setenv("SYNFOC3D_CONFIG", str(project.settings(**COURSE)))
        patch.setattr(stock.mp, "spawn", spawn)
        patch.setattr(stock.dist, "init_process_group", gloo)
        patch.setattr(torch.cuda, "set_device", lambda _: None)
        patch.setattr(Ranks, "device", lambda *_: torch.device("cpu"))
        stock.run_training("501", "2d", 0, "nnUNetTrainerSynFoC", num_gpus=2, device=torch.device("cuda"))
    assert_close_trainings(whole[1], project.results("stock_ranks"), read_log)
    assert (project.results("stock_ranks") / "validation" / SUMMARY_FILE).is_file()


@pytest.mark.parametrize(("given", "expected"), [(None, 3), ("4", 4)])
def test_processes_share_the_cores_they_may_use_unless_the_user_says_otherwise(monkeypatch, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)  # torch has read it when it was imported
    threads, before = [], torch.get_num_threads()
    monkeypatch.setattr(launching, "train", lambda: threads.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(4)
        launching._train_as_rank("", {})
    finally:
        torch.set_num_threads(before)
    assert threads == [expected]


# --- refusals -----------------------------------------------------------------------------------------------------

REFUSED = {
    "more than samples": (
        (3, {}),
        "Each of 3 processes takes samples of every batch, but the batch size is 2: use -num_gpus 2, or train with "
        "--set batch_size=3.",
    ),
    "none": ((0, {}), "-num_gpus must be at least 1, but is 0."),
    "within torchrun": (
        (2, {"RANK": "0"}),
        "torchrun has started the processes of this training: leave out -num_gpus.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_numbers_of_processes_are_refused(project, capfd, monkeypatch, name):
    (count, environment), sentence = REFUSED[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match="1"):
        train(project, "refused", count)
    said = capfd.readouterr().err
    assert said.endswith(f"synfoc3d train: {sentence}\n") and "Traceback" not in said


def test_gpus_that_do_not_exist_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        UserError, match="^4 processes were asked for, each with a GPU of its own, but torch finds 2 here"
    ):
        launching.launch(4, {"device": "cuda"})
    with pytest.raises(UserError, match="use -num_gpus 2."):
        Ranks(0, 4, 0, 4).device(torch.device("cuda"))
    assert Ranks(3, 4, 1, 2).device(torch.device("cuda")) == torch.device("cuda", 1)  # the second of two machines
    with pytest.raises(UserError, match="A training on mps has one process"):
        launching.launch(2, {"device": "mps"})


@pytest.mark.parametrize(("layer", "what"), [(nn.BatchNorm2d(1), "batch norms"), (nn.Dropout2d(0.1), "dropout")])
def test_networks_that_see_a_part_of_a_batch_otherwise_are_refused(layer, what):
    def trainer(*layers):
        return SimpleNamespace(ranks=Ranks(0, 2), students={"conventional": nn.Sequential(*layers)})

    with pytest.raises(UserError, match=f"The conventional network has {what}, which see each process's part"):
        refuse_unshared(trainer(layer))
    refuse_unshared(trainer(nn.InstanceNorm2d(1), nn.Dropout(0.0)))


def test_method_that_averages_over_its_part_of_a_batch_is_refused(project, capfd):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="1"):
        patch.setattr("synfoc3d.methods.mean_teacher.mean", torch.mean)
        train(project, "own_losses", 2, "-tr", "nnUNetTrainerMeanTeacher")
    sentence = "train: MeanTeacher has another loss, or other logs, in each process, of a part of the batch: let it sum"
    assert sentence in capfd.readouterr().err
