"""What a list of overrides inherits, and which mistakes are found when it is read."""

from __future__ import annotations

from typing import Any

import pytest

from repro.errors import UserError
from repro.records.layers import expand, inherit, stack


def is_group(name: str) -> bool:
    return name in ("model", "method", "model/part")


def expanded(**named: Any) -> dict[str, list[str]]:
    return expand(named, "arm", is_group)


def test_an_heir_has_what_its_parent_has_and_what_it_says_itself() -> None:
    found = expanded(parent=["a.b=1", "c=2"], heir=["like=parent", "d=3"])
    assert found == {"parent": ["a.b=1", "c=2"], "heir": ["a.b=1", "c=2", "d=3"]}


def test_an_heir_replaces_the_value_of_a_key() -> None:
    assert expanded(parent=["a=1", "b=2"], heir=["like=parent", "a=3"])["heir"] == ["b=2", "a=3"]


def test_an_heir_that_chooses_a_group_drops_what_was_said_inside_it() -> None:
    parent = ["model=big", "model.width=8", "models.width=8", "method.x=1"]
    found = expanded(parent=parent, heir=["like=parent", "model=small", "model.depth=2"])
    assert found["heir"] == ["models.width=8", "method.x=1", "model=small", "model.depth=2"]


def test_a_nested_group_drops_only_what_lies_inside_it() -> None:
    parent = ["model.width=8", "model.part.size=3"]
    found = expanded(parent=parent, heir=["like=parent", "model/part=other"])
    assert found["heir"] == ["model.width=8", "model/part=other"]


def test_inheritance_goes_on_over_generations_in_any_order() -> None:
    found = expanded(
        grandchild=["like=child", "a=3"], child=["like=parent", "b=2"], parent=["a=1", "b=1"]
    )
    assert found["grandchild"] == ["b=2", "a=3"]
    assert list(found) == ["grandchild", "child", "parent"]


def test_a_key_that_a_parent_adds_needs_no_plus() -> None:
    assert expanded(parent=["+a=1"], heir=["like=parent", "a=2"])["heir"] == ["++a=2"]


def test_removals_are_inherited_and_taken_back() -> None:
    found = expanded(parent=["~a.b"], heir=["like=parent", "c=1"], back=["like=parent", "a.b=1"])
    assert found["heir"] == ["~a.b", "c=1"]
    assert found["back"] == ["a.b=1"]


def test_an_heir_leaves_its_parent_alone() -> None:
    assert expanded(heir=["like=parent", "a=2"], parent=["a=1"])["parent"] == ["a=1"]


def test_null_and_empty_lists_are_nothing() -> None:
    found = expanded(none=None, empty=[], heir=["like=none", "a=1"], same=["like=empty"])
    assert found == {"none": [], "empty": [], "heir": ["a=1"], "same": []}


def test_who_has_no_list_gets_that_of_the_nearest_whom_he_is_like() -> None:
    family = {
        "heir": ["like=middle"],
        "middle": ["like=first", "a=1"],
        "first": ["b=1"],
        "other": None,
    }
    first, middle = {"first": ["c=1"]}, {"middle": ["c=2"]}
    assert inherit(first, family) == {"heir": ["c=1"], "middle": ["c=1"]} | first
    assert inherit(first | middle, family) == {"heir": ["c=2"]} | first | middle
    assert inherit({}, family) == {}


def test_packages_are_told_apart() -> None:
    assert stack([["model@first=a", "model@second=a"], ["model@first=b"]], is_group) == [
        "model@second=a",
        "model@first=b",
    ]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": ["like=svg"], "svgp": []}, "arm 'a' is like 'svg', which is no arm of this paper."),
        ({"a": ["like=svg"], "svgp": []}, "Did you mean 'svgp'?"),
        ({"a": ["like=b"], "b": ["like=c"], "c": ["like=b"]}, "in a circle: a <- b <- c <- b."),
        ({"a": ["like=a"]}, "arms inherit in a circle: a <- a."),
        ({"a": ["x=1", "like=b"], "b": []}, "arm 'a': like=… comes first"),
        ({"a": ["x=1", "x=2"]}, "arm 'a': 'x' is given twice."),
        ({"a": ["x=1", "+x=2"]}, "arm 'a': 'x' is given twice."),
        ({"a": ["like=b", "like=c"], "b": [], "c": []}, "arm 'a': 'like' is given twice."),
        ({"a": ["x: 1"]}, "arm 'a': 'x: 1' is not an override (write key=value)."),
        ({"a": ["x"]}, "arm 'a': 'x' is not an override"),
        ({"a": ["=1"]}, "arm 'a': '=1' is not an override"),
        ({"a": ["x =1"]}, "arm 'a': 'x =1' is not an override"),
        ({"a": [{"x": 1}]}, "arm 'a': \"{'x': 1}\" is not an override"),
        ({"a": "x=1"}, "arm 'a' takes a list of overrides, not 'x=1'."),
        ({"a b": []}, "arm 'a b': a name takes letters"),
        ([], "arms is a mapping from names to lists of overrides, not []."),
    ],
)
def test_mistakes_are_one_line(named: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        expand(named, "arm", is_group)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
