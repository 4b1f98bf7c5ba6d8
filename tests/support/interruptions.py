"""Cutting a run short in the middle of its training, and what must be the same at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repro.launching.local import run_study
from repro.records.run import Run, Status
from repro.records.study import Study
from repro.training import execute
from repro.training.checkpoints import Interrupted


@contextlib.contextmanager
def unplugged(module: type, at: Callable[[Any, int], bool]) -> Iterator[None]:
    """Meanwhile training of a module ends before the first step where ``at(module, index)``."""
    step: Any = module.training_step  # type: ignore[attr-defined]

    def pull_the_plug(self: Any, batch: Any, index: int) -> Any:
        if at(self, index):
            raise Interrupted
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "training_step", pull_the_plug)
        yield


def run_until(study: Study, module: type, at: Callable[[Any, int], bool], run: int = 0) -> None:
    """Runs a study until one of its runs is interrupted; see `unplugged`."""
    with unplugged(module, at), contextlib.suppress(KeyboardInterrupt):
        run_study(study)
    assert study.runs[run].status() == Status.INTERRUPTED


def stop_after(steps: int, run: Run) -> None:
    """Executes a run until a polite request to stop, as the engine makes one of signals."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(execute, "_StopRequest", lambda: _StopAfter(steps))
        execute.execute(run.folder)
    assert run.status() == Status.INTERRUPTED


class _StopAfter:
    def __init__(self, limit: int) -> None:
        self.limit, self.steps = limit, 0

    def __enter__(self) -> _StopAfter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def requested(self) -> bool:
        self.steps += 1
        return self.steps >= self.limit


def timeless(run: Run) -> dict[str, float]:
    """A run's summary without what may differ between equal runs."""
    return {name: value for name, value in run.summary().items() if not name.startswith("time/")}
