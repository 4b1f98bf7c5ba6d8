"""The engine's loop over steps does what Lightning's does, and leaves the rest to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run, Status
from repro.training.execute import execute_here
from repro.training.lightning import Steps
from repro.training.supervised import Supervised

SMALL = ["arm=sgd", "seed=3", "training.epochs=2", "training.log_every=3", "training.val_every=2"]


def executed(folder: Path, name: str, *typed: str) -> Run:
    run = create_study(plan_study(["paper=toy", *SMALL, *typed]), folder / name).runs[0]
    assert execute_here(run) == Status.FINISHED, run.record()
    return run


def content(run: Run) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run.last_checkpoint, weights_only=True)
    return checkpoint


@pytest.mark.parametrize("typed", [[], ["training.max_steps=27"], ["hardware.precision=64-true"]])
def test_the_same_checkpoint_as_with_lightnings_own_loop(
    toy: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str]
) -> None:
    plain: list[bool] = []
    start = Steps.on_run_start

    def noting(self: Steps, *args: Any) -> None:
        start(self, *args)
        plain.append(self.is_plain)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "on_run_start", noting)
        ours = executed(toy, "ours", *typed)
    assert plain == [True, True]
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "advance", Steps.__base__.advance)  # type: ignore[union-attr]
        lightnings = executed(toy, "lightnings", *typed)
    one, other = content(ours), content(lightnings)
    assert one["loops"] == other["loops"]
    assert one["global_step"] == other["global_step"]
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    assert (ours.folder / "metrics.csv").read_text() == (
        lightnings.folder / "metrics.csv"
    ).read_text()


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_after_batch_transfer"])
def test_a_hook_that_somebody_wrote_is_called_at_every_step(
    toy: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    steps = []

    def noted(self: Supervised, batch: Any, index: int) -> Any:
        if self.trainer.training:
            steps.append(self.global_step)
        return batch if hook == "on_after_batch_transfer" else None

    monkeypatch.setattr(Supervised, hook, noted)
    executed(toy, "hooked", "training.test_with=none")
    assert steps == list(range(40))
