"""Knobs by type: what is refused, in which words, and what passes untouched."""

from __future__ import annotations

import doctest
import functools
import inspect
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import torch
from annotated_types import Ge, Le
from omegaconf import OmegaConf

from repro import knobs
from repro.errors import UserError
from repro.knobs import (
    Count,
    Fraction,
    KnobError,
    Known,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Share,
    checked,
)
from repro.planning.instantiate import instantiate

TABLE = {"sine": math.sin, "cosine": math.cos}


class Thing:
    """Something with knobs."""

    @checked
    def __init__(
        self,
        count: Count = 1,
        natural: Natural = 0,
        positive: Positive = 1.0,
        amount: NonNegative = 0.0,
        chance: Probability = 0.0,
        share: Share = 1.0,
        fraction: Fraction = 0.0,
        bits: Annotated[int, Ge(2), Le(8)] = 2,
        few: Count | None = None,
        sizes: Sequence[Count] = (),
        parts: Mapping[str, Count] | None = None,
        mode: Literal["add", "mul"] = "add",
        wave: Annotated[str, Known(tuple(TABLE))] = "sine",
        maybe: Literal["mrt", "rzf"] | None = None,
        free: object = None,
    ) -> None:
        self.few, self.sizes, self.free = few, sizes, free


@checked
@dataclass
class Settings:
    """A data class with a knob."""

    share: Share = 0.5


@checked
def scaled(optimizer: object, factor: Fraction = 0.5) -> object:
    """A function with a knob."""
    return optimizer, factor


@checked
def joined(count: Count, *names: str, share: Share = 1.0, **others: float) -> tuple[object, ...]:
    """A function that collects arguments."""
    return count, names, share, others


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 0, "is a whole number of at least 1, not 0."),
        ("count", True, "is a whole number of at least 1, not True."),
        ("count", 2.0, "is a whole number of at least 1, not 2.0."),
        ("count", "2", "is a whole number of at least 1, not '2'."),
        ("natural", -1, "is a whole number of at least 0, not -1."),
        ("positive", 0, "is positive, not 0."),
        ("positive", math.nan, "is positive, not nan."),
        ("amount", -0.1, "is at least 0, not -0.1."),
        ("amount", math.nan, "is at least 0, not nan."),
        ("chance", 1.1, "lies in [0, 1], not 1.1."),
        ("share", 0, "lies in (0, 1], not 0."),
        ("share", math.nan, "lies in (0, 1], not nan."),
        ("fraction", 1, "lies in [0, 1), not 1."),
        ("bits", 9, "is a whole number in [2, 8], not 9."),
        ("few", 0, "is a whole number of at least 1 or null, not 0."),
        ("sizes", [3, 0], "is a list, and each item is a whole number of at least 1, not [3, 0]."),
        ("sizes", 3, "is a list, and each item is a whole number of at least 1, not 3."),
        (
            "parts",
            {"val": 0},
            "is a mapping, and each value is a whole number of at least 1 or null, not {'val': 0}.",
        ),
        ("mode", "ad", "is add or mul, not 'ad'. Did you mean 'add'?"),
        ("wave", "cosin", "is sine or cosine, not 'cosin'. Did you mean 'cosine'?"),
        ("maybe", "mr", "is mrt or rzf or null, not 'mr'. Did you mean 'mrt'?"),
    ],
)
def test_a_wrong_value_is_one_line(name: str, value: object, words: str) -> None:
    with pytest.raises(UserError) as error:
        Thing(**{name: value})  # type: ignore[arg-type]
    assert str(error.value) == f"Thing.{name} {words}"


def test_what_is_allowed_arrives_as_it_was_given() -> None:
    sizes, free = OmegaConf.create([1, 2]), torch.zeros(2)
    thing = Thing(3, 0, 1, sizes=sizes, free=free, mode="mul", wave="cosine", maybe="rzf")
    assert thing.sizes is sizes
    assert thing.free is free
    assert thing.few is None
    assert scaled(free)[0] is free  # type: ignore[index]


def test_positional_arguments_and_data_classes_are_checked_too() -> None:
    with pytest.raises(UserError, match=r"^Thing\.count is a whole"):
        Thing(0)
    with pytest.raises(UserError, match=r"^Settings\.share lies in \(0, 1\], not 2\.$"):
        Settings(2)
    with pytest.raises(UserError, match=r"^scaled\.factor lies in \[0, 1\), not 1\.$"):
        functools.partial(scaled, factor=1)(None)


def test_what_a_function_collects_is_no_knob_of_it() -> None:
    assert joined(2, "a", "b", share=0.5, names=3) == (2, ("a", "b"), 0.5, {"names": 3})
    with pytest.raises(UserError, match=r"^joined\.share lies in \(0, 1\], not 2\.$"):
        joined(2, "a", "b", share=2)
    with pytest.raises(UserError, match=r"^joined\.count is a whole"):
        joined(0, "a")


def test_signature_docstring_and_pickling_stay() -> None:
    assert list(inspect.signature(scaled).parameters) == ["optimizer", "factor"]
    assert scaled.__doc__ == "A function with a knob."
    assert "count" in inspect.signature(Thing).parameters
    assert pickle.loads(pickle.dumps(Settings(0.25))) == Settings(0.25)
    assert str(pickle.loads(pickle.dumps(KnobError("a", "b", "is c")))) == "a.b is c"
    with pytest.raises(TypeError, match="unexpected keyword argument 'thrice'"):
        scaled(None, thrice=3)  # type: ignore[call-arg]


def test_a_config_names_what_a_person_would_type() -> None:
    config = OmegaConf.create(
        {"method": {"_target_": "repro.methods.scalelong.SkipScaling", "kappa": 3}}
    )
    with pytest.raises(UserError, match=r"^method\.kappa lies in \(0, 1\], not 3\.$"):
        instantiate(config.method)


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(knobs).failed == 0
