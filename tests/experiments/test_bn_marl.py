"""The room of Bayesian-network policies, at scale=smoke and by composition at the others."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from failures import fails_in_one_line
from interruptions import run_until, timeless
from repro.experiments.bn_marl.module import Play

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.launching.local import run_study
from repro.methods.bn_marl import Aloha, BayesNetPPO, GradientPlay
from repro.planning.plan import Plan, plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module

PAPER = load_paper("bn_marl")
SMALL = ["paper=bn_marl", "scale=smoke", "n_jobs=1", "hardware.threads=1"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The whole study at scale=smoke, run once for all tests here."""
    made = create_study(plan_study([*SMALL, "seed=0"]), tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


def test_smoke_plays_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    summaries = {run.record()["arm"]: run.summary() for run in study.runs}
    reported = set().union(*(summary.keys() for summary in summaries.values()))
    assert set(PAPER.report) <= reported
    assert 0 < summaries["full"]["test/poa_n3"] < 1
    assert summaries["full"]["train/updates"] == 8
    assert summaries["ppo_learned"]["train/updates"] == 4
    assert 0 < summaries["ppo_learned"]["test/open_ratio"] < 1
    assert summaries["ppo_none"]["test/open_ratio"] == 0
    assert {verdict.verdict for verdict in judge_study(study)} == {Verdict.NOT_AT_SCALE}
    written = {path.name for path in draw_study(study)}
    assert written >= {"tabular.png", "ppo.png"}


@functools.cache  # composing takes longer than building
def plan_at(scale: str) -> Plan:
    """The plan of a scale for one seed; at full that of every arm."""
    everything = [f"arm=[{','.join(PAPER.arms)}]"] if scale == "full" else []
    return plan_study(["paper=bn_marl", f"scale={scale}", "seed=0", *everything])


@pytest.mark.parametrize(
    "scale", ["mini", "full", "full_long", "full_ten", "full_aloha", "full_mpe"]
)
def test_every_scale_composes(scale: str) -> None:
    plan = plan_at(scale)
    if scale == "full":
        assert {run.arm for run in plan.runs} == set(PAPER.arms)
    for run in plan.runs:
        if run.config.method._target_.endswith("GradientPlay"):
            updates = 20_000 if scale == "full_long" else 2000
            assert (run.config.method.updates, run.config.method.starts) == (updates, 7)
        elif scale == "full":
            assert run.config.method.updates * 32 * 25 == 200_000
        if run.config.optimizer._target_.endswith("Adam"):
            assert run.config.optimizer.eps == 1e-5


def test_every_arm_builds_what_it_says() -> None:
    players: dict[str, Any] = {
        run.arm: build_module(run.config).player for run in plan_at("full").runs
    }
    assert isinstance(players["line"], GradientPlay)
    assert players["line_published"].graphs[0].sum() == 0
    learned = players["ppo_learned"]
    assert isinstance(learned, BayesNetPPO)
    assert learned.sampler is not None
    assert not learned.resample
    assert players["ppo_annealed"].annealing.enabled
    assert players["ppo_published"].resample
    assert players["ppo_none"].sampler is None
    player: Any = build_module(plan_at("full_aloha").runs[-1].config).player
    assert isinstance(player.world, Aloha)
    assert player.actor.share


def test_fewer_steps_are_fewer_updates(tmp_path: Path) -> None:
    typed = [*SMALL, "arm=line", "seed=0", "training.max_steps=1"]
    study = create_study(plan_study(typed), tmp_path)
    run_study(study)
    assert study.runs[0].summary()["train/updates"] == 2  # a quarter of its eight


@pytest.mark.parametrize("arm", ["line", "ppo_annealed"])
def test_a_killed_run_ends_with_the_same_numbers(arm: str, tmp_path: Path) -> None:
    typed = [
        *SMALL, f"arm={arm}", "seed=0", "training.checkpoint.every_steps=1", "dataset.ticks=3",
        "budget.rollouts=6", "method.annealing.start=0.1" if "ppo" in arm else "budget.updates=60",
    ]  # fmt: skip
    straight, killed = (create_study(plan_study(typed), tmp_path / name) for name in "ab")
    run_study(straight)
    # In the middle of the second epoch.
    run_until(killed, Play, lambda module, index: module.global_step == 4)
    torch.manual_seed(123)  # whatever came in between
    run_study(killed)
    assert killed.runs[0].record()["attempts"] == 2
    ends = [timeless(made.runs[0]) for made in (straight, killed)]
    assert ends[0] == ends[1]
    weights = [
        torch.load(made.runs[0].last_checkpoint, weights_only=True)["state_dict"]
        for made in (straight, killed)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("arm", "typed", "complaint"),
    [
        ("full", "method.graph=ful", "Did you mean 'full'"),
        ("full", "method=gradient_noise", "bn_marl takes method=bn_marl/tabular"),
        ("ppo_none", "method.annealing.enabled=true", "only a learned graph"),
        ("ppo_learned", "world.agents=4", "method.tolerance"),
    ],
)
def test_a_bad_knob_fails_the_run_in_one_line(
    arm: str, typed: str, complaint: str, tmp_path: Path
) -> None:
    plan = plan_study([*SMALL, f"arm={arm}", "seed=0", typed])
    fails_in_one_line(create_study(plan, tmp_path), complaint)
