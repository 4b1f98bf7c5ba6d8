"""Cutting a run short in the middle of its training, and what must be the same at its end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from rooms import finished, prepared

from repro.records.run import Run, Status
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


def same_after_a_kill(folder: Path, step: int, *typed: str, straight: Run | None = None) -> Run:
    """Kills the last run of a study before a step; continued, it must end as if nothing had been.

    It goes on from a checkpoint of an earlier step, with the random generators elsewhere.

    Args:
        folder: for the studies.
        step: the step at which the run is killed.
        typed: the study.
        straight: a run of the same that was not killed, if there is one already.

    Returns:
        The killed run, with the numbers and the bits of the straight one, but for times.
    """
    checkpoints = f"training.checkpoint.every_steps={max(1, step - 1)}"
    straight = straight or finished(folder / "straight", checkpoints, *typed)
    killed = prepared(folder / "killed", checkpoints, *typed).runs[-1]
    parent, trained = killed.parent(), straight.parent()
    if parent is not None and trained is not None:  # it was not killed: no need to train it again
        shutil.copytree(trained.folder, parent.folder, dirs_exist_ok=True)
    module = get_class(killed.config().module._target_)
    with unplugged(module, lambda module, index: module.global_step >= step):
        assert execute.execute(killed.folder) == Status.INTERRUPTED
    torch.manual_seed(123)
    assert execute.execute(killed.folder) == Status.FINISHED
    assert killed.record().attempts == 2
    assert timeless(killed) == timeless(straight)
    ends = [
        torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (killed, straight)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(
        torch.equal(value, ends[1][name])
        for name, value in ends[0].items()
        if not name.endswith("seconds")
    )
    return killed


def stop_after(steps: int, run: Run) -> None:
    """Executes a run until a polite request to stop, as the engine makes one of signals."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(execute, "StopRequest", lambda folder: _StopAfter(steps))
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
