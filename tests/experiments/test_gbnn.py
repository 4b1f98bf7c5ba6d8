"""What is special to gradient-boosted networks: cutting, the official grids, single data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.gbnn.tries import JOINT_KNOBS, Task, expand
from rooms import configs, finished, plan, refusal, summaries

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("gbnn")


def test_smoke_runs_and_cuts(study: Study) -> None:
    found = summaries(study)
    for arm in ("gbnn", "nn_adam", "nn_lbfgs"):
        assert set(PAPER.report) <= found[arm].keys()
    assert found["gbnn"]["test/merge_error"] < 1e-9
    assert 0.2 < found["gbnn"]["test/cost_of_a_quarter"] <= 0.25
    assert found["cnn_gbnn"]["test/accuracy"] > 0.8  # the backbone came with its weights
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert verdicts["C4"] is Verdict.SUPPORTED


def test_images_start_from_the_trained_backbone() -> None:
    runs = plan("paper=gbnn", "scale=full_images").runs
    assert [run.parent for run in runs] == [None, "resnet"]


def test_full_has_the_budget_and_the_grid_of_the_official_code() -> None:
    runs = configs("paper=gbnn", "scale=full")
    assert (runs["gbnn"].method.units, runs["gbnn"].method.iterations) == (200, 200)
    for arm in ("gbnn", "nn_adam", "nn_lbfgs", "nn_sgd", "nn_deep"):
        module: Any = build_module(runs[arm])
        known = JOINT_KNOBS if arm != "gbnn" else ("per_step", "shrinkage", "subsample")
        assert len(expand(module.comparison.tries, known)) == 80


def test_a_killed_search_by_lbfgs_ends_with_the_same_numbers(tmp_path: Path) -> None:
    typed = [
        "arm=nn_lbfgs", "seed=0", "training.epochs=6", "~dataset.sets.breast_cancer",
        "dataset.split=7", "module.comparison.shares=[25]", "optimizer.max_iter=3",
    ]  # fmt: skip
    same_after_a_kill(tmp_path, 3, "paper=gbnn", "scale=smoke", *typed)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method.shrinkage=0", "shrinkage lies in"),
        ("module.comparison.grid=bosting", "Did you mean 'boosting'"),
        ("module.comparison.shares=[0]", "shares lie between"),
        ("module.comparison.grids.boosting=[{lr:1}]", "a try sets 'lr'"),
        ("method=dgc +optimizer.momentum=0.9 +optimizer.nesterov=false", "work with arm=cnn"),
        ("dataset=iris", "dataset.batch_size"),
    ],
)
def test_a_bad_knob_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    base = ["paper=gbnn", "scale=mini", "module.comparison.seed=0", "arm=gbnn", "seed=0"]
    assert complaint in refusal(tmp_path, *base, *typed.split())


def test_a_single_data_set_works_when_it_comes_whole(tmp_path: Path) -> None:
    typed = [
        "arm=gbnn", "seed=0", "dataset=iris", "dataset.batch_size=1000",
        "dataset.eval_batch_size=1000", "method.units=6", "method.iterations=20",
    ]  # fmt: skip
    summary = finished(tmp_path, "paper=gbnn", "scale=mini", *typed).summary()
    assert summary["test/accuracy/iris"] > 0.8
    assert summary["steps"] == 6  # as many as blocks of one unit


def test_tasks_measure_what_they_should() -> None:
    labels, logits = torch.tensor([0, 1, 1, 0]), torch.tensor([[-1.0], [2.0], [-3.0], [-1.0]])
    binary = Task.of(labels)
    assert (binary.measure, binary.outputs) == ("accuracy", 2)
    assert binary.score(logits, labels) == 0.75
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(binary.loss(logits, labels), binary.loss(two, labels))
    regression = Task.of(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert regression.measure == "rmse"
    assert regression.score(torch.tensor([[1.0], [2.0], [3.0], [2.0]]), logits.new_tensor([[1], [2], [3], [4]])) == 1  # fmt: skip  # noqa: E501
    with pytest.raises(UserError, match="a try sets 'lr'"):
        expand([{"lr": 1}], ["alpha"])
