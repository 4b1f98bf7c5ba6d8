"""Times of things that take turns, on a clock that the test moves."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from repro.toolbox import timing


def test_medians_of_turns_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    costs = {"a": iter([50.0, 1.0, 9.0, 2.0]), "b": iter([70.0, 3.0, 3.0, 8.0])}
    order = []

    def work(name: str) -> None:
        nonlocal now
        order.append(name)
        now += next(costs[name])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    found = timing.median_seconds({name: partial(work, name) for name in costs}, 3)
    assert found == {"a": 2, "b": 3}
    assert order == ["a", "b"] * 4
