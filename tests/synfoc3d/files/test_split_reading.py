import json

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.layout import SPLITS_FILE
from synfoc3d.files.splits import Split, load_splits, read_splits, save_splits

SPLITS = [Split(("a",), ("b", "c"), ("d",)), Split(("d",), ("b",), ())]


def write(folder, content):
    (folder / SPLITS_FILE).write_text(content if isinstance(content, str) else json.dumps(content))


def test_saved_splits_are_read_again(tmp_path):
    save_splits(tmp_path / "Dataset501_X", SPLITS)
    assert load_splits(tmp_path / "Dataset501_X") == SPLITS


def test_one_fold_is_read(tmp_path):
    save_splits(tmp_path, SPLITS)
    assert read_splits(tmp_path, 1) == SPLITS[1]


def test_file_has_the_documented_form(tmp_path):
    content = json.loads(save_splits(tmp_path, SPLITS[:1]).read_text())
    assert content == [{"labeled": ["a"], "unlabeled": ["b", "c"], "val": ["d"]}]


@pytest.mark.parametrize("fold", [2, -1, "all"])
def test_unknown_fold_is_refused(tmp_path, fold):
    save_splits(tmp_path, SPLITS)
    with pytest.raises(UserError, match=f"has no fold {fold!r}; its folds are: 0, 1"):
        read_splits(tmp_path, fold)


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(UserError, match="synfoc3d split -d 501 "):
        load_splits(tmp_path / "Dataset501_X")


@pytest.mark.parametrize(
    "content",
    ["{", {"labeled": ["a"]}, [{"labeled": ["a"], "val": []}], [{"labeled": "a", "unlabeled": [], "val": []}]],
)
def test_other_content_is_refused(tmp_path, content):
    write(tmp_path, content)
    with pytest.raises(UserError, match="is not of the form"):
        load_splits(tmp_path)


def test_fold_without_labeled_case_is_refused(tmp_path):
    write(tmp_path, [{"labeled": [], "unlabeled": ["a"], "val": []}])
    with pytest.raises(UserError, match="Fold 0 of .* has no labeled case"):
        load_splits(tmp_path)


@pytest.mark.parametrize(
    "parts",
    [(["a"], [], ["a"]), (["a"], ["b"], ["b"]), (["a", "a"], [], []), (["c"], ["b", "b"], []), (["c"], [], "aa")],
)
def test_case_on_two_sides_is_refused(tmp_path, parts):
    write(tmp_path, [dict(zip(("labeled", "unlabeled", "val"), map(list, parts), strict=True))])
    with pytest.raises(UserError, match="Fold 0 of .* lists case '[ab]' 2 times"):
        load_splits(tmp_path)


def test_invalid_split_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="lists case 'a' 2 times"):
        save_splits(tmp_path, [Split(("a",), (), ("a",))])
    assert not (tmp_path / SPLITS_FILE).exists()


def test_labeled_case_may_be_unlabeled_too(tmp_path):
    split = Split(("a", "b"), ("c", "b"), ("d",))
    save_splits(tmp_path, [split])
    assert load_splits(tmp_path) == [split]
    assert split.both == ("b",)
