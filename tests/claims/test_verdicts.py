from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.claims import verdicts
from repro.claims.verdicts import format_effect


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(verdicts).failed == 0


@pytest.mark.parametrize(
    ("numbers", "options", "text"),
    [
        ((0.00831, -0.00213, 0.01875), {"signed": True}, "+0.008 [-0.002, +0.019]"),
        ((0.9387, 0.93, 0.9474), {"percent": True}, "93.9 [93.0, 94.7] %"),
        ((277.0,), {"unit": "×"}, "277 ×"),
        ((0.35, 0.35, 0.35), {"unit": "MB"}, "0.35 MB"),
        ((0.5, None, None), {}, "0.5"),
        ((0.5, 0.1, None), {}, "0.5 [0.1, ∞]"),
        ((0.0,), {"signed": True}, "+0"),
        ((-0.00001, -0.1, 0.1), {"signed": True}, "+0.00 [-0.10, +0.10]"),
        ((1.234e-7, 1.1e-7, 1.4e-7), {}, "1.23e-07 [1.1e-07, 1.4e-07]"),
        ((12345678.0,), {}, "1.23e+07"),
        ((float("nan"),), {}, "–"),
    ],
)
def test_format(numbers, options, text):
    assert format_effect(*numbers, **options) == text


@given(st.floats(), st.floats() | st.none(), st.floats() | st.none(), st.booleans(), st.booleans())
def test_formatting_never_fails_and_stays_short(effect, low, high, signed, percent):
    text = format_effect(effect, low, high, signed=signed, percent=percent, unit="MB")
    assert len(text) < 60
