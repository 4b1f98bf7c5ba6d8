"""The room of ICGNN, at scale=smoke and by composition at the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from failures import fails_in_one_line
from interruptions import run_until, timeless
from repro.experiments.icgnn.module import Transmission

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.launching.local import run_study
from repro.methods.icgnn import CellFree, Downlink
from repro.planning.plan import Plan, plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module

PAPER = load_paper("icgnn")
SMALL = ["paper=icgnn", "scale=smoke", "n_jobs=1"]
# What goes the whole way through the engine here; the other arms are composed and built.
LIGHT = ("rzf_cg8", "wmmse", "icgnn_cg8", "mlp_fixed", "max_min", "icgnn_power")


@pytest.fixture(scope="module")
def plan() -> Plan:
    """All arms at scale=smoke."""
    return plan_study([*SMALL, "seed=0"])


@pytest.fixture(scope="module")
def study(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One run of every kind at scale=smoke, for all tests here."""
    light = replace(plan, runs=[run for run in plan.runs if run.arm in LIGHT])
    made = create_study(light, tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


def summaries(study: Study) -> dict[str, dict[str, float]]:
    return {run.record()["arm"]: run.summary() for run in study.runs}


def test_smoke_measures_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    found = summaries(study)
    for arm in ("rzf_cg8", "wmmse", "icgnn_cg8", "icgnn_power", "max_min"):
        assert set(PAPER.report) <= found[arm].keys()
        assert found[arm]["test/power_error"] < 1e-5
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C6"].verdict == Verdict.SUPPORTED
    assert verdicts["C1"].verdict == Verdict.NOT_AT_SCALE
    written = {path.name for path in draw_study(study)}
    assert written >= {"sizes.png", "steps.png", "cost.png", "cost.svg"}


def test_the_reference_is_itself_and_measured_like_the_others(study: Study) -> None:
    found = summaries(study)["wmmse"]
    assert found["test/relative_se/seen"] == pytest.approx(1, abs=1e-6)
    assert found["test/savings/seen"] == pytest.approx(1)
    assert found["test/savings_equal_se/seen"] == pytest.approx(1)
    assert found["test/iterations_to_match/8x8_10dB"] == 5  # all that scale=smoke has
    assert found["test/solves"] > 0
    icgnn = summaries(study)["icgnn_cg8"]
    assert icgnn["test/solves"] == 0
    at_eight = icgnn["test/relative_se_at/8/8x8_10dB"]
    assert at_eight == pytest.approx(icgnn["test/relative_se/8x8_10dB"], rel=1e-6)


def test_a_perceptron_is_tested_at_its_own_size_alone(study: Study) -> None:
    found = summaries(study)["mlp_fixed"]
    sizes = {name for name in found if name.startswith("test/se/")}
    assert sizes == {f"test/se/{size}" for size in
                     ("8x8_10dB", "8x8_20dB", "8x16_10dB", "8x16_20dB", "seen")}  # fmt: skip
    assert found["test/permutation_error"] > 1e-6


def test_every_arm_composes_and_builds(plan: Plan) -> None:
    full = plan_study(["paper=icgnn", "scale=full", "seed=0"])
    for each in (plan, full):
        assert {run.arm for run in each.runs} == set(PAPER.arms)
        for run in each.runs:
            problem = build_module(run.config).model.problem
            assert problem is {"cellular": Downlink, "cellfree": CellFree}[run.config.dataset.kind]
    configs = {run.arm: run.config for run in full.runs}
    assert configs["rzf"].dataset.cellular.antennas == 128
    assert configs["icgnn_power"].model.width == configs["icgnn_cg4"].model.width == 64


@pytest.mark.parametrize("arm", ["icgnn_cg8", "icgnn_power"])
def test_a_killed_run_ends_with_the_same_numbers(arm: str, tmp_path: Path) -> None:
    typed = [*SMALL, f"arm={arm}", "seed=0", "dataset.cellular.eval_size=4", "module.cg_steps=[2]",
             "training.checkpoint.every_steps=1", "dataset.cellfree.eval_size=4"]  # fmt: skip
    straight, killed = (create_study(plan_study(typed), tmp_path / name) for name in "ab")
    run_study(straight)
    # In the middle of the second epoch.
    run_until(killed, Transmission, lambda module, index: (module.current_epoch, index) == (1, 2))
    run_study(killed)
    assert {made.runs[0].status() for made in (straight, killed)} == {Status.FINISHED}
    assert timeless(straight.runs[0]) == timeless(killed.runs[0])
    assert killed.runs[0].record()["attempts"] == 2


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["model.cg_steps=0"], "model.cg_steps"),
        (["model.width=0"], "model.width"),
        (["model.kind=cellfree"], "LearnedPower does not fit dataset.kind=cellular"),
        (["dataset.kind=celular"], "Did you mean 'cellular'"),
        (["dataset=digits"], "simulates its channels: dataset=wireless"),
        (["module.timed.cellular=[9x9]"], "9x9, which is not tested"),
        (["dataset.cellular.users=[8,3]"], "dataset.users is a range"),
    ],
)
def test_a_bad_knob_fails_the_run_in_one_line(
    tmp_path: Path, typed: list[str], complaint: str
) -> None:
    kind = ["model.kind=cellular"] if typed == ["dataset=digits"] else []
    small = [] if kind or "celular" in typed[0] else ["scale=smoke"]
    plan = plan_study(["paper=icgnn", "n_jobs=1", *small, "arm=icgnn_cg8", "seed=0", *kind, *typed])
    fails_in_one_line(create_study(plan, tmp_path), complaint)
