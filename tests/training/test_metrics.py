"""Metrics are declared: what reads an unknown one fails before the study."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.errors import UserError
from repro.planning.plan import plan_study
from repro.training.metrics import ALWAYS, check_declared, declared, undeclared


def test_a_run_declares_what_its_module_its_parents_and_its_method_log(toy: Path) -> None:
    run = plan_study(["paper=toy", "arm=sgd", "seed=0", "method=dgc"]).runs[0]
    known = declared(run.config)
    assert {"test/loss", "comm/density", "comm/waiting_steps", *ALWAYS} <= known.keys()
    plain = declared(plan_study(["paper=toy", "arm=sgd", "seed=0"]).runs[0].config)
    assert "comm/density" not in plain


def test_a_star_stands_for_what_a_name_is_built_with() -> None:
    known = {"test/loss_*": "nats", "steps": "updates"}
    assert undeclared(["test/loss_60", "steps"], known) == []
    assert undeclared(["test/loss", "val/loss_60", "step"], known) == [
        "test/loss",
        "val/loss_60",
        "step",
    ]


def test_whoever_reads_an_unknown_metric_is_named_with_the_nearest_one() -> None:
    logged = {"a": {"test/accuracy": "share"}, "b": {"test/rmse": "K"}}
    check_declared(["test/accuracy", "test/rmse"], ["a", "b"], logged, "report")
    with pytest.raises(UserError, match=r"claim C1: no arm logs 'test/acuracy'.*'test/accuracy'"):
        check_declared(["test/acuracy"], ["a"], logged, "claim C1")
    with pytest.raises(UserError, match="no arm logs 'test/rmse'"):
        check_declared(["test/rmse"], ["a"], logged, "claim C2")
    check_declared(["test/rmse"], ["a", "not in this study"], logged, "claim C3")
