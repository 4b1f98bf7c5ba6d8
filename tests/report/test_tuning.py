"""Tables of what arms were tuned over."""

from __future__ import annotations

from typing import Any

import pytest

from repro.errors import UserError
from repro.records.tuning import Tuning
from repro.report.record import with_tries


def rates(name: str, *tries: dict[str, Any], judged: str = "") -> dict[str, Any]:
    """A grid of rates 0.1 and 1."""
    settings = ({"lr": 0.1}, {"lr": 1.0})
    return {
        "name": name,
        "judged": judged,
        "tries": [{"settings": s, **t} for s, t in zip(settings, tries, strict=True)],
    }


SGD = rates("sgd", {"values": {100: 0.25, 101: 0.75}, "chosen": True}, {"values": {100: "nan"}})
ADAM = rates("adam", {"mean": 0.12345}, {"values": {100: -1 / 3, 101: -1 / 3}, "note": "late"})
WARM = {
    "name": "warm",
    "tries": [
        {"settings": {"lr": 0.1, "weight": 4}, "mean": 0.2},
        {"settings": {"lr": 1.0}, "chosen": True},
    ],
}


def block(*grids: dict[str, Any], name: str = "tuning") -> list[str]:
    """The lines of a README's block."""
    tuning = Tuning(judged="loss", seeds=(100, 101), grids=list(grids))  # type: ignore[arg-type]
    text = with_tries(f"before\n<!-- {name} -->\nold\n<!-- /{name} -->\nafter\n", tuning)
    first, marker, *lines, end, last = text.splitlines()
    assert (first, marker, end, last) == (
        "before",
        f"<!-- {name} -->",
        f"<!-- /{name} -->",
        "after",
    )
    return lines


def test_a_setting_that_all_vary_is_laid_out_in_columns() -> None:
    assert block(SGD, ADAM) == [
        "| arm, lr (¹: number of seeds) | 0.1 | 1 |",
        "| --- | --- | --- |",
        "| sgd | **0.5** | nan ¹ |",
        "| adam | 0.12345 | −0.3333, late |",
    ]


def test_other_tries_are_listed() -> None:
    assert block(ADAM, WARM) == [
        "| arm | tries |",
        "| --- | --- |",
        "| adam, lr | 0.1: 0.12345 · 1: −0.3333, late |",
        "| warm | lr 0.1, weight 4: 0.2 · **lr 1** |",
    ]


def test_a_value_tried_twice_is_shown_twice() -> None:
    twice = {"name": "sgd", "tries": [{"settings": {"lr": 0.1}, "mean": m} for m in (1, 2)]}
    assert block(twice)[2] == "| sgd, lr | 0.1: 1 · 0.1: 2 |"


def test_an_arm_without_settings_is_its_result() -> None:
    assert block({"name": "kmeans", "tries": [{"settings": {}, "mean": 1}]}, WARM)[2] == (
        "| kmeans | 1 |"
    )


def test_what_is_judged_differently_stands_apart() -> None:
    other = rates("forest", {"mean": 1}, {"mean": 2}, judged="accuracy")
    assert block(SGD, other, ADAM)[3:7] == ["", "*accuracy:*", "", "| arm, lr | 0.1 | 1 |"]
    assert "*loss:*" in block(SGD, other, ADAM)


def test_the_choices_alone() -> None:
    assert block(SGD, ADAM, WARM, name="tuning:chosen") == [
        "| arm | tried | lr | result |",
        "| --- | --- | --- | --- |",
        "| sgd | 2 | 0.1 | 0.5 |",
        "| warm | 2 | 1 | – |",
    ]


def test_grids_by_name() -> None:
    other = rates("forest", {"mean": 1}, {"mean": 2}, judged="accuracy")
    name = "tuning:for*|warm"
    assert block(SGD, other, name=name)[-1] == "| forest | 1 | 2 |"
    with pytest.raises(UserError, match="<!-- tuning:tree -->: there are no such tries"):
        block(SGD, name="tuning:tree")
