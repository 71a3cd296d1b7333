"""Scans that are shared out over workers: the same masks as of the plain command, whoever dies."""

import json
import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pytest

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.layout import PREDICTION_FILE, SHARED_PREDICTION
from synfoc3d.files.share import FAILED, MEMBERS, PARTIAL, Share
from synfoc3d.inference import pipeline, shared_prediction
from synfoc3d.inference.models import ModelChoice
from synfoc3d.inference.predict import PredictOptions, predict
from synfoc3d.inference.prompts import PromptChoice
from synfoc3d.inference.shared_prediction import predict_shared, work
from synfoc3d.inference.untrained import UntrainedChoice

SCANS, DAMAGED, NOT_A_NUMBER = 40, "scan07", "scan23"
LINE = "-d 501 -c 2d --model conventional -step_size 1 -npp 0 -nps 0 -device cpu".split()
OPTIONS = PredictOptions(
    step_size=1.0, mirroring=False, preprocessing_processes=0, export_processes=0, progress_bar=False
)


def masks(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.nii.gz"))}


# --- workers in this process ----------------------------------------------------------------------


@pytest.fixture
def scans(project, tmp_path):
    """A folder with copies of two scans."""
    return shutil.copytree(project.root / "scans" / "unlabeled", tmp_path / "scans")


def choice(model="conventional", configuration="2d"):
    return ModelChoice("501", configuration, model=model)


def work_here(share):
    work(share, "cpu")


def interrupted_after(count):
    """Return hands whose worker has done so many scans when the call is interrupted."""

    def hands(share):
        take = Share.take

        def few(self, *, alone):
            yield from islice(take(self, alone=alone), count)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Share, "take", few)
            work_here(share)

    return hands


@pytest.fixture
def run(trained, scans, tmp_path):
    """Return a function that has a worker here segment the scans into tmp_path / "masks"."""

    def call(model_choice=None, *, source=scans, hands=work_here, output="masks", **options):
        with trained.active():
            return predict_shared(
                source, tmp_path / output, model_choice or choice(), hands, options=replace(OPTIONS, **options)
            )

    return call


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.nii.gz")}


@pytest.mark.parametrize("model", ["ensemble", None])
def test_every_model_answers_as_by_the_plain_command(run, trained, scans, tmp_path, model):
    with trained.active():
        expected = predict(scans, tmp_path / "plain", choice(model), options=OPTIONS)
    assert run(choice(model)) == expected == 2
    assert masks(tmp_path / "masks") == masks(tmp_path / "plain")
    plain, own = (json.loads((tmp_path / name / PREDICTION_FILE).read_text()) for name in ("plain", "masks"))
    assert own.pop("seconds") and plain.pop("seconds") and own == plain  # who chose the model, too


def test_one_scan_with_its_mask_in_another_format(run, scans, tmp_path):
    scan = sorted(scans.glob("*.nii.gz"))[0]
    assert run(source=scan, output="asked/mask.mha", save_probabilities=True) == 1
    names = sorted(file.name for file in (tmp_path / "asked").iterdir())
    assert names.pop(0) == ".synfoc3d_scans"
    assert names == ["dataset.json", "mask.mha", "mask.npz", "mask.pkl", "plans.json", "synfoc3d_predict.json"]


def test_interrupted_call_goes_on_by_the_same_line(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(hands=interrupted_after(1))
    before = times(tmp_path / "masks")
    assert len(before) == 1
    assert run() == 1
    after = times(tmp_path / "masks")
    assert len(after) == 2 and before.items() < after.items()


def test_scan_that_was_changed_since_is_segmented_anew(run, scans, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(hands=interrupted_after(1))
    (done,) = (tmp_path / "masks").glob("*.nii.gz")
    scan = scans / done.name.replace(".nii", "_0000.nii")
    os.utime(scan, ns=(0, 5))
    before = done.stat().st_mtime_ns
    assert run() == 2
    assert done.stat().st_mtime_ns != before


@pytest.mark.parametrize("skip_finished", [False, True])
def test_scan_that_another_one_took_the_place_of_is_segmented_anew(run, scans, tmp_path, skip_finished):
    with pytest.raises(KeyboardInterrupt):
        run(hands=interrupted_after(1))
    (done,) = (tmp_path / "masks").glob("*.nii.gz")
    mine, other = (file for file in sorted(scans.iterdir(), key=lambda file: not file.name.startswith(done.name[:9])))
    before = done.read_bytes()
    shutil.copy2(other, mine)
    assert run(skip_finished=skip_finished) == 2
    assert done.read_bytes() != before
    assert masks(tmp_path / "masks")[done.name] == done.read_bytes()


def test_finished_folder_whose_scan_is_another_one_by_now_goes_on(run, scans, tmp_path):
    assert run() == 2
    first, second = sorted((tmp_path / "masks").glob("*.nii.gz"))
    shutil.copy2(scans / second.name.replace(".nii", "_0000.nii"), scans / first.name.replace(".nii", "_0000.nii"))
    assert run(skip_finished=True) == 1
    assert np.array_equal(*(nibabel.load(mask).get_fdata() for mask in (first, second)))


def test_finished_folder_is_segmented_anew_unless_it_is_to_be_continued(run, tmp_path):
    assert run() == 2
    before = times(tmp_path / "masks")
    assert run(skip_finished=True) == 0
    assert times(tmp_path / "masks") == before
    assert run() == 2
    assert all(later > before[name] for name, later in times(tmp_path / "masks").items())


def test_calls_at_the_same_time_share_the_scans(run, tmp_path):
    counts = []

    def hands(share):
        if not counts:
            counts.append("the first call waits for the second")
            counts.append(run(hands=hands))
        else:
            work_here(share)

    counts.append(run(hands=hands))
    assert counts[1:] == [2, 2]
    assert len(masks(tmp_path / "masks")) == 2 and not (tmp_path / "masks" / SHARED_PREDICTION).exists()


def test_other_networks_and_the_plain_command_are_refused_meanwhile(run, refusal, trained, scans, tmp_path):
    told = []

    def hands(share):
        told.append(refusal(choice("foundation")))
        with pytest.raises(UserError) as caught, trained.active():
            predict(scans, tmp_path / "masks", choice(), options=OPTIONS)
        told.append(str(caught.value))
        work_here(share)

    run(hands=hands)
    assert "whose masks are of another model or of other checkpoints: wait until they are done" in told[0]
    assert "share it out in .synfoc3d_predict: wait until they are done, or join them" in told[1]
    assert len(masks(tmp_path / "masks")) == 2


def test_checkpoint_that_changes_meanwhile_is_noticed(run, refusal, trained):
    file = trained.results() / "checkpoint_final.pth"
    kept = file.read_bytes()

    def hands(share):
        checkpoint = checkpoints.load(file)
        file.unlink()
        checkpoints.save_atomic(checkpoint | {"changed": True}, file)
        try:
            work_here(share)
        finally:
            file.unlink()
            file.write_bytes(kept)

    assert refusal(hands=hands).startswith("This call began with masks of another model or of other checkpoints than")


def test_worker_that_slept_writes_no_mask_into_another_share(run, refusal, tmp_path, monkeypatch):
    place, write = tmp_path / "masks" / SHARED_PREDICTION, pipeline.write_case

    def sleep_and_write(*arguments, **named):
        for part in (MEMBERS, PARTIAL):  # as a later call does, which takes this worker for dead
            shutil.rmtree(place / part)
            (place / part).mkdir()
        write(*arguments, **named)

    monkeypatch.setattr(pipeline, "write_case", sleep_and_write)
    assert "from this process, which stops: two would mix their results." in refusal()
    assert not masks(tmp_path / "masks") and not any((place / FAILED).iterdir())


def test_folder_that_gets_no_mask_goes_again(refusal, scans, flip_bit, tmp_path):
    for scan in scans.glob("*.nii.gz"):
        flip_bit(scan)
    assert refusal().startswith("0 of 2 cases segmented, 2 failed:")
    assert not (tmp_path / "masks").exists()


def test_labels_are_not_replaced(refusal, scans, tmp_path):
    label = tmp_path / "masks" / sorted(scans.glob("*.nii.gz"))[0].name.replace("_0000", "")
    label.parent.mkdir()
    label.write_bytes(b"the work of days")
    assert "is there already, and no prediction wrote it" in refusal()
    assert [file.name for file in label.parent.iterdir()] == [label.name]


def test_parts_are_refused(refusal):
    assert refusal(num_parts=2) == "--on shares the scans out by itself: leave out -num_parts and -part_id."


@pytest.mark.parametrize(
    "asked",
    [
        (choice(), PromptChoice()),
        (ModelChoice("501", "2d", folds=(0, "all"), model="ensemble"), PromptChoice("point", points=Path("p.csv"))),
        (UntrainedChoice("sam", "501", "2d"), PromptChoice("gt_box", references=Path("/labels"))),
    ],
)
def test_worker_is_told_model_and_prompt(asked):
    model, prompt = asked
    way = json.loads(json.dumps(shared_prediction._way(model, OPTIONS, prompt, {"model": "ensemble"})))
    told = shared_prediction._choice(way)
    assert told == (replace(model, model="ensemble") if isinstance(model, ModelChoice) else model)
    assert shared_prediction._prompt(way["prompt"]) == prompt
    assert PredictOptions(**way["options"]) == OPTIONS


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (("--gpus", "0"), "--gpus need --on, which says where the cases are shared out."),
        (("--jobs", "2", "--cluster", "c.yaml"), "--jobs and --cluster need --on, which says"),
        (("--on", "slurm", "--jobs", "2"), "--jobs can only be given with --on local; what --on slurm gets,"),
    ],
)
def test_options_without_their_engine_are_refused(trained, scans, tmp_path, capsys, line, sentence):
    with pytest.raises(SystemExit, match="1"):
        trained.command("predict", "-i", scans, "-o", tmp_path / "masks", *LINE, *line)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_status_needs_the_place_alone(trained, run, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(hands=interrupted_after(1))
    trained.command("predict", "-o", tmp_path / "masks", "--status")
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("1 of 2 done, 1 left, ")
    assert last[1] == "Nobody works on it: the line that began it goes on with it."
    trained.command("predict", "-o", tmp_path / "other", "--status")
    told = f"Nothing is shared out in {tmp_path / 'other'}: no call with --on has begun, or all of it is done.\n"
    assert capsys.readouterr().out == told


def test_worker_without_work_is_told_so(trained, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        trained.command("worker", tmp_path)
    assert "work.json: nobody shares out work there, or all of it is done." in capsys.readouterr().err
