"""import and split of sparsely and partly annotated scans, as a user calls them."""

import json

import pytest

from synfoc3d.cli import main
from synfoc3d.files.splits import load_splits


@pytest.fixture
def scans(tmp_path, monkeypatch, write_image, write_label):
    """Four labeled scans a to d and an unlabeled one, u; nnU-Net's folders beside them."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for number, case in enumerate("abcd"):
        write_image(tmp_path / "labeled" / "images" / f"{case}.nii.gz", number)
        write_label(tmp_path / "labeled" / "labels" / f"{case}.nii.gz", (0, 1, 2))
    write_image(tmp_path / "unlabeled" / "u.nii.gz", 9)
    return tmp_path


def run(folder, *options, split=()):
    """Import and split; return the one fold and the dataset's two folders."""
    main(["import", "-d", "501", "-n", "X", "--labeled", f"{folder}/labeled", "--unlabeled", f"{folder}/unlabeled"]
         + [*options])  # fmt: skip
    main(["split", "-d", "501", *split])
    raw, preprocessed = (folder / name / "Dataset501_X" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    (fold,) = load_splits(preprocessed)
    return fold, raw, preprocessed


def ids(folder, *cases):
    (folder / "ids.txt").write_text("\n".join(cases))
    return "--labeled-ids", str(folder / "ids.txt")


@pytest.mark.parametrize(
    ("options", "unlabeled"), [([], ("c", "d", "u", "b")), (["--no-also-unlabeled"], ("c", "d", "u"))]
)
def test_sparse_annotations(scans, write_label, capsys, options, unlabeled):
    write_label(scans / "labeled" / "labels" / "b.nii.gz", (0, 1, 2, 3))
    fold, raw, _ = run(scans, "--labels", "x", "y", "ignore", split=[*ids(scans, "a", "b"), *options])
    assert json.loads((raw / "dataset.json").read_text())["labels"] == {"background": 0, "x": 1, "y": 2, "ignore": 3}
    assert (fold.labeled, fold.unlabeled) == (("a", "b"), unlabeled)
    assert ("labeled and unlabeled" in capsys.readouterr().out) == (not options)


def test_partial_annotations(scans, write_label):
    write_label(scans / "labeled" / "labels" / "b.nii.gz", (0, 1))
    (scans / "who.csv").write_text("case,classes\nb,class_1\n")
    fold, raw, preprocessed = run(scans, "--annotated", f"{scans}/who.csv", split=ids(scans, "a", "b"))
    assert fold.unlabeled == ("c", "d", "u", "b")
    assert (raw / "annotated.csv").read_text() == (preprocessed / "annotated.csv").read_text() != ""


def test_one_class_per_case(scans, write_label):
    """Two of four cases are drawn; both classes must be among them."""
    for case, value in zip("abcd", (1, 1, 1, 2), strict=True):
        write_label(scans / "labeled" / "labels" / f"{case}.nii.gz", (0, value))
    lines = [f"{case},class_{value}" for case, value in zip("abcd", (1, 1, 1, 2), strict=True)]
    (scans / "labeled" / "annotated.csv").write_text("\n".join(["case,classes", *lines]))
    fold, *_ = run(scans, split=["--num-labeled", "2", "--folds", "1"])
    assert "d" in fold.labeled and len(fold.labeled) == 2
    assert set(fold.labeled) <= set(fold.unlabeled)


def test_class_that_nobody_could_teach_is_told(scans, write_label, capsys):
    write_label(scans / "labeled" / "labels" / "b.nii.gz", (0, 1))
    (scans / "labeled" / "annotated.csv").write_text("case,classes\nb,class_1\n")
    with pytest.raises(SystemExit) as caught:
        run(scans, split=ids(scans, "b"))
    assert caught.value.code == 1
    assert "Fold 0 has no labeled case that was annotated for 'class_2'" in capsys.readouterr().err
    assert not (scans / "nnUNet_preprocessed" / "Dataset501_X").exists()
