"""Sections of a settings tree: what they refuse, and how partial trees are merged."""

from typing import Any

import pytest

from synfoc3d.errors import UserError
from synfoc3d.sections import (
    Channel,
    DataFacts,
    Interval,
    Label,
    PositiveInterval,
    Section,
    Seed,
    differences,
    merge,
    validate,
)


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


class Typed(Section):
    """What a later method might read."""

    labels: dict[str, tuple[Label, ...]] = {}
    channel: Channel | None = None
    wide: Interval = (0.0, 1.0)
    positive: PositiveInterval = (1.0, 2.0)
    seed: Seed = 0
    numbers: dict[str, dict[str, float]] = {}
    anything: dict[str, Any] = {}
    switch: bool = False
    text: str = ""


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


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"labels": {"a": [0]}}, r"labels.a.0: .*greater than or equal to 1 \(got 0\)"),
        ({"labels": {"a": [True]}}, r"labels: Input should be a number, not a boolean"),
        ({"numbers": {"a": {"b": True}}}, r"numbers: Input should be a number, not a boolean"),
        ({"numbers": {"a": {"b": float("inf")}}}, r"numbers.a.b: Input should be a finite number \(got inf\)"),
        ({"channel": False}, r"channel: Input should be a number, not a boolean \(got False\)"),
        ({"wide": [1, 0.5]}, r"wide: .* with low no larger than high \(got \[1, 0.5\]\)"),
        ({"positive": [2, 1]}, r"positive: .* with low no larger than high \(got \[2, 1\]\)"),
        ({"positive": [0, 1]}, r"positive.0: .*greater than 0 \(got 0\)"),
        ({"seed": 2**63}, r"seed: .*less than or equal to 9223372036854775807 \(got 9223372036854775808\)"),
        ({"text": True}, r"text: Input should be a valid string \(got True\)"),
    ],
)
def test_value_outside_its_type_is_refused(given: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^my.yaml: {sentence}$"):
        validate(Typed, given, "my.yaml")


def test_booleans_are_taken_where_they_are_meant() -> None:
    tree = validate(Typed, {"switch": True, "anything": {"a": True, "b": [False]}}, "my.yaml")
    assert (tree.switch, tree.anything) == (True, {"a": True, "b": [False]})


def test_labels_and_channels_must_be_those_of_the_dataset() -> None:
    data = DataFacts(num_classes=3, num_channels=2)
    given = {"labels": {"a": [1, 2]}, "channel": 1}
    assert validate(Typed, given, "my.yaml", data=data) == validate(Typed, given, "my.yaml")
    with pytest.raises(UserError, match=r"^my.yaml: method.labels.a.1: .*at most 2, .*highest label \(got 3\)$"):
        validate(Typed, {"labels": {"a": [1, 3]}}, "my.yaml", "method", data=data)
    with pytest.raises(UserError, match=r"^my.yaml: channel: .*at most 1, .*last channel \(got 2\)$"):
        validate(Typed, {"channel": 2}, "my.yaml", data=data)


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
