"""Sections of a settings tree: what they refuse, and how partial trees are merged."""

from typing import Any

import pytest

from synfoc3d.errors import UserError
from synfoc3d.sections import Section, differences, merge, validate


class Leaf(Section):
    size: int = 1
    names: tuple[str, str] = ("a", "b")


class Branch(Section):
    leaf: Leaf = Leaf(size=2)
    free: dict[str, Any] | None = None


class Root(Section):
    branch: Branch = Branch()
    number: float | None = 0.5
    needed: int


def test_values_are_filled_in() -> None:
    tree = validate(Root, {"needed": 3, "branch": {"leaf": {"names": ["x", "y"]}}}, "my.yaml")
    assert tree == Root(branch=Branch(leaf=Leaf(size=1, names=("x", "y"))), number=0.5, needed=3)


def test_section_without_values_is_the_default_at_any_depth() -> None:
    assert validate(Root, {"needed": 3, "branch": None}, "my.yaml").branch == Branch()
    assert validate(Root, {"needed": 3, "branch": {"leaf": None}}, "my.yaml").branch == Branch()


def test_value_that_is_null_stays_so() -> None:
    tree = validate(Root, {"needed": 3, "number": None, "branch": {"free": None}}, "my.yaml")
    assert (tree.number, tree.branch.free) == (None, None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"needed": 3, "branch": {"leaf": {"size": "x"}}}, r"my.yaml: branch.leaf.size: .*valid integer.* \(got 'x'\)"),
        ({"needed": 3, "branch": {"leaf": {"names": ["a"]}}}, r"my.yaml: branch.leaf.names.1: .* \(got \['a'\]\)"),
        ({"needed": 3, "branch": {"laef": {}}}, r"my.yaml: branch: unknown setting 'laef'. Did you mean 'leaf'\?"),
        ({"needed": 3, "number": {}}, r"my.yaml: number: .*valid number \(got \{\}\)"),
        ({"needed": 3, "branch": 4}, r"my.yaml: branch: .*Branch \(got 4\)"),
        ({3: 4}, "my.yaml: unknown setting 3. Known: branch, needed, number."),
        ({}, "my.yaml: needed: Field required"),
        ([1], r"my.yaml: Input should be .*Root \(got \[1\]\)"),
    ],
)
def test_mistake_is_named_with_place_and_value(given: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        validate(Root, given, "my.yaml")


def test_place_starts_at_the_root_of_the_tree() -> None:
    with pytest.raises(UserError, match=r"^my.yaml: a.b.size: .*\(got 'x'\)$"):
        validate(Leaf, {"size": "x"}, "my.yaml", "a", "b")
    with pytest.raises(UserError, match=r"^my.yaml: a: unknown setting 'y'"):
        validate(Leaf, {"y": 1}, "my.yaml", "a")


def test_merging_replaces_values_one_by_one() -> None:
    base = {"number": 1, "branch": {"leaf": {"size": 4, "names": ["a", "b"]}}}
    changes = {"number": None, "needed": 2, "branch": {"leaf": {"size": 5}}}
    assert merge(base, changes) == {
        "number": None,
        "needed": 2,
        "branch": {"leaf": {"size": 5, "names": ["a", "b"]}},
    }
    assert base["branch"] == {"leaf": {"size": 4, "names": ["a", "b"]}}


def test_merging_a_section_without_values_changes_nothing_at_any_depth() -> None:
    base = {"needed": 3, "branch": {"leaf": {"size": 4}}}
    for changes in ({"branch": None}, {"branch": {"leaf": None}}, {"branch": {}}):
        assert validate(Root, merge(base, changes), "my.yaml") == validate(Root, base, "my.yaml")


def test_differences_are_named_by_dotted_keys() -> None:
    first, second = (Root(branch=Branch(leaf=Leaf(size=size)), needed=size) for size in (1, 2))
    assert differences(first, second) == ["branch.leaf.size", "needed"]
    assert differences(first, first) == []
