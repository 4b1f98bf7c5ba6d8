"""What is special to Bayesian-network policies: who plays, how often, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rooms import configs, finished, refusal, summaries

from repro.methods.bn_marl import Aloha, BayesNetPPO, GradientPlay
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("bn_marl")
SMALL = ["paper=bn_marl", "scale=smoke"]


def test_smoke_plays(study: Study) -> None:
    found = summaries(study)
    assert 0 < found["full"]["test/poa_n3"] < 1
    assert found["full"]["train/updates"] == 8
    assert found["ppo_learned"]["train/updates"] == 4
    assert 0 < found["ppo_learned"]["test/open_ratio"] < 1
    assert found["ppo_none"]["test/open_ratio"] == 0


@pytest.mark.parametrize("scale", [scale for scale in PAPER.scales if scale != "smoke"])
def test_every_scale_has_its_budget(scale: str) -> None:
    for config in configs("paper=bn_marl", f"scale={scale}").values():
        if config.method._target_.endswith("GradientPlay"):
            updates = 20_000 if scale == "full_long" else 2000
            assert (config.method.updates, config.method.starts) == (updates, 7)
        elif scale == "full":
            assert config.method.updates * 32 * 25 == 200_000
        if config.optimizer._target_.endswith("Adam"):
            assert config.optimizer.eps == 1e-5


def test_every_arm_builds_what_it_says() -> None:
    plan = configs("paper=bn_marl", "scale=full", f"arm=[{','.join(PAPER.arms)}]")
    players: dict[str, Any] = {arm: build_module(config).player for arm, config in plan.items()}
    assert isinstance(players["line"], GradientPlay)
    assert players["line_published"].graphs[0].sum() == 0
    learned = players["ppo_learned"]
    assert isinstance(learned, BayesNetPPO)
    assert learned.sampler is not None
    assert not learned.resample
    assert players["ppo_annealed"].annealing.enabled
    assert players["ppo_published"].resample
    assert players["ppo_none"].sampler is None
    aloha = configs("paper=bn_marl", "scale=full_aloha").popitem()[1]
    player: Any = build_module(aloha).player
    assert isinstance(player.world, Aloha)
    assert player.actor.share


def test_fewer_steps_are_fewer_updates(tmp_path: Path) -> None:
    run = finished(tmp_path, *SMALL, "arm=line", "seed=0", "training.max_steps=1")
    assert run.summary()["train/updates"] == 2  # a quarter of its eight


@pytest.mark.parametrize(
    ("arm", "typed", "complaint"),
    [
        ("full", "method.graph=ful", "Did you mean 'full'"),
        ("full", "method=gradient_noise", "bn_marl takes method=bn_marl/tabular"),
    ],
)
def test_a_bad_knob_is_one_line(arm: str, typed: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, *SMALL, f"arm={arm}", "seed=0", typed)
