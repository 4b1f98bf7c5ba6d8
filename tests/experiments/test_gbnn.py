"""The room of gradient-boosted networks, at scale=smoke and by composition at the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from failures import fails_in_one_line
from interruptions import run_until, timeless
from repro.experiments.gbnn.module import Comparison
from repro.experiments.gbnn.tries import JOINT_KNOBS, Task, expand

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module

PAPER = load_paper("gbnn")
ARMS = "gbnn nn_adam nn_lbfgs nn_sgd nn_deep timing cnn cnn_gbnn resnet resnet_gbnn"
SMALL = ["paper=gbnn", "scale=smoke", "n_jobs=1"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The whole study at scale=smoke, run once for all tests here."""
    made = create_study(plan_study([*SMALL, "seed=0"]), tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


def test_smoke_runs_cut_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    summaries = {run.record()["arm"]: run.summary() for run in study.runs}
    for arm in ("gbnn", "nn_adam", "nn_lbfgs"):
        assert set(PAPER.report) <= summaries[arm].keys()
    assert summaries["gbnn"]["test/merge_error"] < 1e-9
    assert 0.2 < summaries["gbnn"]["test/cost_of_a_quarter"] <= 0.25
    assert summaries["cnn_gbnn"]["test/accuracy"] > 0.8  # the backbone came with its weights
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C4"].verdict == Verdict.SUPPORTED
    assert verdicts["C1"].verdict == Verdict.NOT_AT_SCALE
    written = draw_study(study)
    assert {path.name for path in written} >= {"truncation.png", "truncation.svg"}


def test_every_arm_composes_and_builds() -> None:
    plan = plan_study(["paper=gbnn", "scale=mini", f"arm=[{','.join(ARMS.split())}]", "seed=0"])
    assert {run.arm for run in plan.runs} == set(ARMS.split()) == set(PAPER.arms)
    plan_of_images = plan_study(["paper=gbnn", "scale=full_images", "seed=0"])
    assert [run.parent for run in plan_of_images.runs] == [None, "resnet"]
    with torch.device("meta"):
        for run in (*plan.runs, *plan_of_images.runs):
            build_module(run.config)


def test_full_has_the_budget_and_the_grid_of_the_official_code() -> None:
    runs = {run.arm: run.config for run in plan_study(["paper=gbnn", "scale=full", "seed=0"]).runs}
    assert (runs["gbnn"].method.units, runs["gbnn"].method.iterations) == (200, 200)
    for arm in ("gbnn", "nn_adam", "nn_lbfgs", "nn_sgd", "nn_deep"):
        module = build_module(runs[arm])
        known = JOINT_KNOBS if arm != "gbnn" else ("per_step", "shrinkage", "subsample")
        assert len(expand(module.comparison.tries, known)) == 80


@pytest.mark.parametrize("arm", ["gbnn", "nn_lbfgs"])
def test_a_killed_run_ends_with_the_same_numbers(arm: str, tmp_path: Path) -> None:
    typed = [
        *SMALL, f"arm={arm}", "seed=0", "training.epochs=6", "training.checkpoint.every_seconds=0",
        "~dataset.sets.breast_cancer", "dataset.split=7", "module.comparison.shares=[25]",
        *(["optimizer.max_iter=3"] if arm == "nn_lbfgs" else []),
    ]  # fmt: skip
    straight, killed = (create_study(plan_study(typed), tmp_path / name) for name in "ab")
    run_study(straight)
    run_until(killed, Comparison, lambda module, index: module.global_step == 3)
    run_study(killed)
    ends = [timeless(made.runs[0]) for made in (straight, killed)]
    assert ends[0] == ends[1]
    assert killed.runs[0].record()["attempts"] == 2


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method.shrinkage=0", "shrinkage lies in"),
        ("module.comparison.grid=bosting", "Did you mean 'boosting'"),
        ("module.comparison.shares=[0]", "shares lie between"),
        ("module.comparison.grids.boosting=[{lr:1}]", "a try sets 'lr'"),
        ("method=dgc", "work with arm=cnn"),
        ("dataset=iris", "dataset.batch_size"),
    ],
)
def test_a_bad_knob_fails_the_run_in_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    typed_more = ["+optimizer.momentum=0.9", "+optimizer.nesterov=false"] if "dgc" in typed else []
    clash = ["module.comparison.seed=0"]
    base = [t for t in SMALL if t != "scale=smoke"] + ["scale=mini"]
    plan = plan_study([*base, *clash, "arm=gbnn", "seed=0", typed, *typed_more])
    fails_in_one_line(create_study(plan, tmp_path), complaint)


def test_a_single_data_set_works_when_it_comes_whole(tmp_path: Path) -> None:
    whole = ["dataset.batch_size=1000", "dataset.eval_batch_size=1000"]
    typed = ["paper=gbnn", "scale=mini", "n_jobs=1", "arm=gbnn", "seed=0", "dataset=iris", *whole]
    plan = plan_study([*typed, "method.units=6", "method.iterations=20"])
    study = create_study(plan, tmp_path)
    run_study(study)
    assert study.runs[0].summary()["test/accuracy/iris"] > 0.8
    assert study.runs[0].summary()["steps"] == 6  # as many as blocks of one unit


def test_tasks_measure_what_they_should() -> None:
    x = torch.zeros(4, 2)
    labels, logits = torch.tensor([0, 1, 1, 0]), torch.tensor([[-1.0], [2.0], [-3.0], [-1.0]])
    binary = Task.of(x, labels)
    assert (binary.measure, binary.outputs) == ("accuracy", 2)
    assert binary.score(logits, labels) == 0.75
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(binary.loss(logits, labels), binary.loss(two, labels))
    regression = Task.of(x, torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert regression.measure == "rmse"
    assert regression.score(torch.tensor([[1.0], [2.0], [3.0], [2.0]]), x.new_tensor([[1], [2], [3], [4]])) == 1  # fmt: skip  # noqa: E501
    with pytest.raises(UserError, match="a try sets 'lr'"):
        expand([{"lr": 1}], ["alpha"])
