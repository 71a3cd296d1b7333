"""The data of an experiment: folds that are written or read, test cases that are named or collected."""

import json
from pathlib import Path
from typing import Any

import pytest

from synfoc3d.errors import UserError
from synfoc3d.experiment.folds import ExperimentData, refuse_partial_labels, resolve_data, write_data
from synfoc3d.experiment.plan import parse_plan
from synfoc3d.files.domains import write_domains
from synfoc3d.files.splits import Split, load_splits, save_splits

DATASET = "Dataset501_Toy"
DOMAINS = {"a1": "A", "a2": "A", "a3": "A", "b1": "B", "b2": "B", "u1": "B"}
FIRST = [{"name": "A", "labeled_domain": "A", "num_labeled": 2, "choose": "first"}]
FOLDS = [Split(("a1",), ("u1",), ("b1", "b2")), Split(("b1",), ("a1",), ())]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_label: Any) -> tuple[Path, Path]:
    """A dataset without images in nnUNet_raw, with two test cases, and its folder in nnUNet_preprocessed."""
    raw, preprocessed = tmp_path / "raw" / DATASET, tmp_path / "pre" / DATASET
    for variable, place in (("raw", "raw"), ("preprocessed", "pre"), ("results", "results")):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / place))
    preprocessed.mkdir(parents=True)
    for folder, cases in (("Tr", [case for case in DOMAINS if case != "u1"]), ("Ts", ["t1", "t2"])):
        (raw / f"images{folder}").mkdir(parents=True)
        for case in cases:
            (raw / f"images{folder}" / f"{case}_0000.nii.gz").touch()
            write_label(raw / f"labels{folder}" / f"{case}.nii.gz", (0, 1))
    (raw / "imagesUn").mkdir()
    (raw / "imagesUn" / "u1_0000.nii.gz").touch()
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "x": 1}, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    write_domains(raw / "domains.csv", DOMAINS)
    return raw, preprocessed


def resolve(output: Path, **changes: Any) -> ExperimentData:
    methods = {"a": {"trainer": "nnUNetTrainerSupervised"}}
    plan = parse_plan({"dataset": 501, "splits": FIRST, "test": {}, "methods": methods} | changes, "plan")
    return resolve_data(plan, DATASET, output)


def test_first_patients_of_a_domain_are_labeled(folders: Any, tmp_path: Path) -> None:
    data = resolve(tmp_path)
    assert data.splits == (Split(("a1", "a2"), ("a3", "b1", "b2", "u1"), ()),)
    assert data.folds == {"A": 0}


def test_patients_follow_the_pattern(folders: Any, tmp_path: Path) -> None:
    splits = [{"name": "one", "num_labeled": 1, "choose": "first"}]
    assert resolve(tmp_path, splits=splits, patient_pattern="^(.)").splits[0].labeled == ("a1", "a2", "a3")


def test_random_patients_leave_some_for_validation(folders: Any, tmp_path: Path) -> None:
    splits = [{"name": name, "labeled_domain": name, "num_labeled": 1, "seed": 3} for name in ("A", "B")]
    first, second = resolve(tmp_path, splits=splits, test=None).splits
    assert (len(first.labeled), len(first.val)) == (1, 1)
    assert (first.labeled[0][0], second.labeled[0][0]) == ("a", "b")


def test_lists_lie_in_the_folder_of_the_dataset(folders: Any, tmp_path: Path) -> None:
    lists = {"few": ["b2"], "rest": ["a1"], "val": ["a3", "b1"]}
    (folders[0] / "splits.json").write_text(json.dumps(lists))
    keys = {"labeled_ids": "few", "unlabeled_ids": "rest", "val_ids": "val"}
    data = resolve(tmp_path, splits=[{"name": "x", **{key: f"splits.json:{name}" for key, name in keys.items()}}])
    assert data.splits == (Split(("b2",), ("a1",), ("a3", "b1")),)


def annotate(raw: Path, write_label: Any) -> None:
    """Two classes; in a1 only the first was annotated."""
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "x": 1, "y": 2}}))
    (raw / "annotated.csv").write_text("case,classes\na1,x\n")
    write_label(raw / "labelsTr" / "a1.nii.gz", (0, 1))


def test_partly_annotated_case_is_unlabeled_too(folders: Any, tmp_path: Path, write_label: Any) -> None:
    annotate(folders[0], write_label)
    for _ in range(2):  # the second time the splits are there
        data = resolve(tmp_path)
        write_data(data, DATASET, for_stock=False)
    assert load_splits(folders[1]) == [Split(("a1", "a2"), ("a3", "b1", "b2", "u1", "a1"), ())]
    assert (folders[1] / "annotated.csv").read_text() == "case,classes\na1,x\n"


def test_nnunets_own_trainers_are_refused_where_cases_are_partly_annotated(
    folders: Any, tmp_path: Path, write_label: Any
) -> None:
    annotate(folders[0], write_label)
    with pytest.raises(UserError, match=r"partly annotated cases, .* take nnUNetTrainerSupervised"):
        refuse_partial_labels(DATASET)
    (folders[0] / "annotated.csv").unlink()
    refuse_partial_labels(DATASET)


def test_folds_of_others_keep_their_annotations(folders: Any, tmp_path: Path, write_label: Any) -> None:
    annotate(folders[0], write_label)
    save_splits(folders[1], FOLDS)
    write_data(resolve(tmp_path, splits=[{"fold": 0}]), DATASET, for_stock=False)
    assert not (folders[1] / "annotated.csv").exists()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            [FIRST[0] | {"num_labeled": 4}],
            "4 labeled patients are needed, but domain 'A' of .* has 3 .*domains: A, B.",
        ),
        ([FIRST[0] | {"labeled_domain": "C"}], "domain 'C' of Dataset501_Toy has 0"),
        ([{"name": "x", "num_labeled": 6, "choose": "first"}], "6 .* needed, but Dataset501_Toy has 5 in imagesTr.$"),
        ([{"name": "x", "labeled_ids": "no.txt"}], r"no\.txt cannot be read"),
    ],
)
def test_cases_that_are_not_there_are_refused(splits: list, message: str, folders: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        resolve(tmp_path, splits=splits)


def test_own_folds_are_written_once(folders: Any, tmp_path: Path) -> None:
    write_data(resolve(tmp_path), DATASET, for_stock=False)
    assert load_splits(folders[1])[0].labeled == ("a1", "a2")
    write_data(resolve(tmp_path), DATASET, for_stock=False)
    assert not (folders[1] / "splits_final.json").exists()


def test_folds_of_others_are_not_overwritten(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    with pytest.raises(UserError, match=r"splits_semi.json holds other splits than the plan: name its folds .*fold: 0"):
        resolve(tmp_path)


def test_existing_folds_are_named_by_number(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    assert resolve(tmp_path, splits=[{"fold": 1}, {"name": "x", "fold": 0}]).folds == {"fold1": 1, "x": 0}


def test_fold_that_is_not_there_is_refused(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    with pytest.raises(UserError, match="Split 'fold2': .*splits_semi.json has no fold 2, only 2 folds"):
        resolve(tmp_path, splits=[{"fold": 2}])


def test_named_test_set(folders: Any, tmp_path: Path) -> None:
    write_domains(folders[0] / "d.csv", {"t1": "A", "t2": "B"})
    test = resolve(tmp_path, test={"domains": "d.csv"}).test["A"]
    assert (test.images, test.labels) == (folders[0] / "imagesTs", folders[0] / "labelsTs")
    assert test.domains == folders[0] / "d.csv"


@pytest.mark.parametrize(
    ("remove", "message"),
    [("labelsTs/t2.nii.gz", "test case 't2' of .*imagesTs has no label"), ("domains_test.csv", "domains.* not exist")],
)
def test_incomplete_test_set_is_refused(remove: str, message: str, folders: Any, tmp_path: Path) -> None:
    (folders[0] / remove).unlink(missing_ok=True)
    with pytest.raises(UserError, match=message):
        resolve(tmp_path, test={"domains": "domains_test.csv"})


def test_validation_cases_are_collected(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    write_domains(folders[1] / "domains.csv", DOMAINS)
    data = resolve(tmp_path / "out", splits=[{"fold": 0}], test=None)
    for _ in range(2):  # the second part finds everything there
        write_data(data, DATASET, for_stock=False)
    test = data.test["fold0"]
    assert test.images == tmp_path / "out" / "test" / "fold0" / "images"
    assert sorted(file.name for file in test.images.iterdir()) == ["b1_0000.nii.gz", "b2_0000.nii.gz"]
    assert (test.labels / "b1.nii.gz").read_bytes() == (folders[0] / "labelsTr" / "b1.nii.gz").read_bytes()
    assert (test.labels.parent / "dataset.json").is_file() and test.domains == folders[1] / "domains.csv"


def test_collected_cases_keep_the_annotations_of_the_dataset(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    assert resolve(tmp_path / "out", splits=[{"fold": 0}], test=None).test["fold0"].annotated is None
    (folders[0] / "annotated.csv").write_text("case,classes\na1,x\n")
    assert resolve(tmp_path / "out", splits=[{"fold": 0}], test=None).test["fold0"].annotated == (
        folders[0] / "annotated.csv"
    )


def test_split_without_anything_to_test_on_is_refused(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    with pytest.raises(UserError, match="Split 'fold1' has no validation case to test on"):
        resolve(tmp_path, splits=[{"fold": 1}], test=None)


def test_files_are_copied_where_links_are_not_allowed(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    save_splits(folders[1], FOLDS)
    data = resolve(tmp_path / "out", splits=[{"fold": 0}], test=None)
    write_data(data, DATASET, for_stock=False)
    assert not (data.test["fold0"].images / "b1_0000.nii.gz").is_symlink()


def test_stock_trainers_get_the_same_folds(folders: Any, tmp_path: Path) -> None:
    save_splits(folders[1], FOLDS)
    data = resolve(tmp_path, splits=[{"fold": 0}])
    write_data(data, DATASET, for_stock=True)
    written = json.loads((folders[1] / "splits_final.json").read_text())
    assert written == [{"train": ["a1"], "val": ["b1", "b2"]}, {"train": ["b1"], "val": ["b1"]}]
    write_data(data, DATASET, for_stock=True)


def test_other_folds_of_stock_trainers_are_not_overwritten(folders: Any, tmp_path: Path) -> None:
    (folders[1] / "splits_final.json").write_text("[]")
    with pytest.raises(UserError, match=r"splits_final.json holds other cases .* move it away"):
        write_data(resolve(tmp_path), DATASET, for_stock=True)
    assert not (folders[1] / "splits_semi.json").exists()
