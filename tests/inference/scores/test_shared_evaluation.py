"""Cases that are shared out over workers: the same files as of the plain command, bit for bit."""

import json
import os
import re
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from synfoc3d import cli
from synfoc3d.errors import UserError
from synfoc3d.files.layout import shared_evaluation
from synfoc3d.files.share import Share
from synfoc3d.inference.scores.case_comparison import Compare
from synfoc3d.inference.scores.evaluate import evaluate_folder
from synfoc3d.inference.scores.shared_evaluation import KIND, map_shared, work

SHAPE = (9, 8, 7)
CASES = [f"case{number}" for number in range(6)]
DOMAINS = "case,domain\n" + "".join(f"{case},{'AB'[number % 2]}\n" for number, case in enumerate(CASES))


def write(file, volume, spacing=(0.5, 0.8, 3.0)):
    file.parent.mkdir(exist_ok=True, parents=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing, 1.0])), file)


@pytest.fixture
def data(tmp_path, flip_bit):
    """Six cases of two classes: one is damaged, one on another grid, one without any voxel of class 2."""
    random = np.random.default_rng(0)
    for case in CASES:
        truth = random.integers(0, 3, SHAPE).astype(np.uint8)
        predicted = np.where(random.random(SHAPE) < 0.7, truth, 0).astype(np.uint8)
        if case == "case4":
            truth[truth == 2] = predicted[predicted == 2] = 0
        write(tmp_path / "labelsTr" / f"{case}.nii.gz", truth)
        write(tmp_path / "predicted" / f"{case}.nii.gz", predicted)
    write(tmp_path / "predicted" / "case3.nii.gz", predicted[1:])
    flip_bit(tmp_path / "predicted" / "case2.nii.gz")
    (tmp_path / "domains.csv").write_text(DOMAINS)
    return tmp_path


def describe(data, **labels):
    content = {"labels": {"background": 0, **labels}, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(content))


def evaluate(data, name, hands=None, **options):
    output = data / f"{name}.json"
    apply = hands and partial(map_shared, hands=hands, place=shared_evaluation(output))
    result = evaluate_folder(
        data / "labelsTr", data / "predicted", data / "domains.csv", output, num_processes=1, apply=apply, **options
    )
    return repr(result), output.read_bytes(), output.with_suffix(".csv").read_bytes()  # NaN is not equal to itself


def same(first, second):
    """Compare without the differences that pytest would look for in long texts for minutes."""
    return all(one == other for one, other in zip(first, second, strict=True))


def work_here(share):
    work(share, 1)


# classes in dataset.json, annotated cases, options
WAYS = {
    "no dataset.json": ({}, "", {}),
    "classes": ({"wall": 1, "cavity": 2}, "", {}),
    "regions": ({"whole": [1, 2], "cavity": 2}, "", {}),
    "ignore": ({"wall": 1, "cavity": 2, "ignore": 3}, "", {}),
    "partly annotated": ({"wall": 1, "cavity": 2}, "case,classes\ncase4,wall\n", {}),
    "per slice": ({"wall": 1, "cavity": 2}, "", {"per_slice": True}),
}


@pytest.mark.parametrize("way", WAYS)
def test_result_and_files_are_those_of_the_plain_command(data, way):
    labels, annotated, options = WAYS[way]
    if labels:
        describe(data, **labels)
    if "ignore" in labels:
        for file in (data / "labelsTr").glob("*.nii.gz"):
            truth = np.asarray(nibabel.load(file).dataobj).copy()
            truth[:3] = 3
            write(file, truth)
    if annotated:
        (data / "annotated.csv").write_text(annotated)
    plain = evaluate(data, "plain", **options)
    assert same(evaluate(data, "shared", work_here, **options), plain)
    assert b"case2.nii.gz cannot be read, it is damaged" in plain[1] and b"case3" in plain[1]
    assert sorted(file.name for file in data.glob(".*")) == [".plain_made_of.json", ".shared_made_of.json"]


def test_paths_are_kept_as_they_were_typed(data, monkeypatch):
    monkeypatch.chdir(data)
    describe(data, wall=1, cavity=2)
    folders = Path("labelsTr"), Path("predicted"), Path("domains.csv")
    apply = partial(map_shared, hands=work_here, place=shared_evaluation(data / "shared.json"))
    plain = evaluate_folder(*folders, data / "plain.json", num_processes=1)
    shared = evaluate_folder(*folders, data / "shared.json", apply=apply)
    assert repr(shared) == repr(plain)
    assert (data / "plain.json").read_bytes() == (data / "shared.json").read_bytes()
    assert str(shared.cases[0].reference) == "labelsTr/case0.nii.gz"


def interrupted_after(count):
    """Return hands whose worker has done so many cases when the call is interrupted."""

    def hands(share):
        take = Share.take

        def few(self, *, alone):
            for number, item in enumerate(take(self, alone=alone)):
                if number > count:  # of which one is only taken
                    raise KeyboardInterrupt
                yield item

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Share, "take", few)
            work(share, 1)

    return hands


def test_interrupted_call_goes_on_with_the_cases_that_have_not_changed(data):
    describe(data, wall=1, cavity=2)
    plain = evaluate(data, "plain")
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, "shared", interrupted_after(4))
    (folder,) = data.glob(".synfoc3d_evaluate_*")
    done = {file.name for file in (folder / "results").iterdir()} | {
        file.name for file in (folder / "failed").iterdir()
    }
    assert len(done) == 4
    changed = next(file.name for file in (folder / "results").iterdir())
    os.utime(data / "labelsTr" / f"{changed}.nii.gz", ns=(0, 5))
    compared = []

    def hands(share):
        call = Compare.__call__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Compare, "__call__", lambda self, pair: compared.append(pair.case) or call(self, pair))
            work(share, 1)

    assert same(evaluate(data, "shared", hands), plain)
    kept = {*CASES} - {*compared}
    assert kept <= done and changed in compared and len(kept) >= 1


def test_another_way_is_refused_meanwhile(data):
    describe(data, wall=1, cavity=2)
    told = []

    def hands(share):
        assert share.work.kind == KIND
        with pytest.raises(UserError) as caught:
            evaluate(data, "shared", work_here, per_slice=True)
        told.append(str(caught.value))
        work_here(share)

    evaluate(data, "shared", hands)
    assert re.search(r"and evaluate them in another way: wait until they are done", told[0])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            ("--on", "local", "--gpus", "0"),
            "--gpus does not help evaluate, which needs processors alone: leave it out.",
        ),
        (("--jobs", "2"), "--jobs need --on, which says where the cases are shared out."),
    ],
)
def test_options_that_do_not_help_are_refused(data, capsys, line, sentence):
    with pytest.raises(SystemExit, match="1"):
        cli.main(["evaluate", "-g", str(data / "labelsTr"), "-p", str(data / "predicted"), *line])
    assert sentence in capsys.readouterr().err


def test_status_needs_the_predictions_alone(data, capsys):
    describe(data, wall=1, cavity=2)
    (data / "predicted" / "results.json").touch()
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, "predicted/results", interrupted_after(3))
    cli.main(["evaluate", "-p", str(data / "predicted"), "--status"])
    last = capsys.readouterr().out.splitlines()[-2:]
    assert re.match(r"\d of 6 done, (\d failed, )?\d left, ", last[0])
    assert last[1].startswith("Nobody works on it")
