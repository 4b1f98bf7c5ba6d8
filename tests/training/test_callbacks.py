"""Callbacks that a user chooses, the profiler, and `debug=true`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rooms import finished, prepared

from repro.errors import UserError
from repro.planning import trust
from repro.planning.plan import plan_study
from repro.records.status import Status
from repro.training.execute import execute

TOY = ("paper=toy", "scale=smoke", "arm=sgd", "seed=0")


def test_early_stopping_ends_a_run_that_no_longer_improves(toy: Path) -> None:
    chosen = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2"]
    run = finished(toy, *TOY, "training.epochs=20", "optimizer.lr=0.0", *chosen)
    whole = finished(toy / "whole", *TOY, "training.epochs=20", "optimizer.lr=0.0")
    steps = whole.summary()["steps"] / 20
    assert run.summary()["steps"] == 3 * steps  # the first epoch, and two without improvement
    assert "test/loss" in run.summary()


def test_a_callback_of_ones_own_is_called(toy: Path) -> None:
    mine = "+callbacks.mine._target_=toy_room.module.Counting"
    with trust.trusted():
        run = finished(toy, *TOY, "training.epochs=2", mine)
    counted = json.loads((run.artifacts_folder / "epochs.json").read_text())
    assert counted == 2


def test_somebody_elses_run_may_name_only_callbacks_that_a_config_names(toy: Path) -> None:
    (run,) = prepared(toy, *TOY, "+callbacks.mine._target_=toy_room.module.Counting").runs
    assert execute(run.folder) == Status.FAILED
    error = run.record().error
    assert error is not None
    assert "no installed config names for a callback" in error.message


def test_the_profiler_writes_a_trace(toy: Path) -> None:
    chosen = ["profiler=torch", "profiler.skip=1", "profiler.steps=2"]
    run = finished(toy, *TOY, "training.max_steps=6", *chosen)
    trace = json.loads((run.artifacts_folder / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert any("addmm" in str(name) for name in names)
    assert {"ProfilerStep#2", "ProfilerStep#3"} <= names


def test_a_trace_of_a_training_that_is_too_short_does_no_harm(toy: Path) -> None:
    finished(toy, *TOY, "training.max_steps=2", "profiler=torch")


def test_debug_makes_everything_short_and_what_is_typed_wins() -> None:
    plan = plan_study(["paper=dgc", "debug=true", "training.log_every=7"])
    assert {run.seed for run in plan.runs} == {0}
    content = plan.runs[0].content
    assert (content["training"]["epochs"], content["training"]["steps_per_epoch"]) == (1, 3)
    assert content["training"]["detect_anomaly"] is True
    assert content["training"]["log_every"] == 7
    plain = plan_study(["paper=dgc", "debug=false"]).runs
    assert len({run.seed for run in plain}) > 1
    with pytest.raises(UserError, match="debug takes true or false"):
        plan_study(["paper=dgc", "debug=3"])


def test_a_debugged_run_ends(toy: Path) -> None:
    run = finished(toy, "paper=toy", "debug=true", "arm=sgd")
    assert run.summary()["steps"] == 3
