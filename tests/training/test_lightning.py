"""The engine's loop over steps does what Lightning's does, and leaves the rest to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.enums import LightningEnum

from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run, Status
from repro.training.execute import execute_here
from repro.training.lightning import Steps, _is_same, _to
from repro.training.supervised import Supervised

SMALL = ["arm=sgd", "seed=3", "training.epochs=2", "training.log_every=3", "training.val_every=2"]


def executed(folder: Path, name: str, *typed: str) -> Run:
    own = {text.split("=")[0] for text in typed}
    small = [text for text in SMALL if text.split("=")[0] not in own]
    run = create_study(plan_study(["paper=toy", *small, *typed]), folder / name).runs[0]
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


def test_an_unknown_lightning_runs_its_own_loop_and_ends_with_the_same_bits(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = executed(toy, "ours")
    with monkeypatch.context() as patch:
        patch.setattr(lightning, "__version__", "2.7.0")
        patch.setattr(Steps, "advance", lambda *_: pytest.fail("the engine's own loop runs"))
        theirs = executed(toy, "theirs")
    one, other = content(ours), content(theirs)
    assert one["loops"] == other["loops"]
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name


def test_what_one_epoch_logged_is_not_the_last_word(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Supervised.on_train_epoch_end

    def log_once(self: Supervised) -> None:
        end(self)
        self.log("train/first" if self.current_epoch == 0 else "train/later", 1.0)

    monkeypatch.setattr(Supervised, "on_train_epoch_end", log_once)
    summary = executed(toy, "once").summary()
    assert "train/later" in summary
    assert "train/first" not in summary
    # Of validations every other epoch, the last one counts, whichever epoch that was.
    assert "val/loss" in executed(toy, "odd", "training.epochs=3").summary()


def test_stages_are_the_same_as_by_lightnings_comparison() -> None:
    for stage in RunningStage:
        for other in (*RunningStage, *TrainerFn, "train", "TRAIN", "other", None):
            assert _is_same(stage, other) == LightningEnum.__eq__(stage, other), (stage, other)


def test_what_was_logged_goes_where_the_next_value_is() -> None:
    metric = _ResultMetric(_Metadata(fx="training_step", name="loss"), is_tensor=True)
    assert _to(metric, torch.device("meta")).value.is_meta
    before = metric.value
    assert _to(metric, torch.device("meta")).value is before
