"""What is special to Bayesian-network policies: who plays, how often, and what is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repro.experiments.bn_marl.module import Play
from rooms import configs, finished, logged, refusal, summaries

from repro.methods.bn_marl import Aloha, BayesNetPPO, CoordinationGame, GradientPlay
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


# Joint actions of the games below: the best one, and one in which an agent makes all agree.
MIXED = {2: (0, 1), 3: (0, 0, 1), 5: (0, 0, 0, 1, 1)}


def test_games_are_worth_what_arithmetic_says() -> None:
    """Without flips at γ = ½, a constant action is worth the mean reward and its own.

    Mean rewards are 5/4, 1 and 5/4; all zeros have 3, and the mixed actions 0. One agent of these
    can change 0 to 3. One start of three has all zeros; first gaps were 2, and POA ¼ midway.
    """
    play = GradientPlay((2, 3, 5), "none", 3, flip=0.0, gamma=0.5, normalise_start=True)
    for k, mixed in enumerate(MIXED.values()):
        for agent, table in enumerate(play.tables(k)):
            own = agent - len(mixed)
            table.data.zero_()
            table.data[0].select(own, 0).add_(100)
            table.data[1:].select(own, mixed[agent]).add_(100)
    play.midway.fill_(0.25)
    play.first_gap.fill_(2.0)
    room = Play(play, torch.optim.SGD)
    found = logged(room, room.on_test_epoch_end)
    best = {2: 17 / 4, 3: 4.0, 5: 17 / 4}
    poa = {n: (1 + 2 * (value - 3) / value) / 3 for n, value in best.items()}
    assert found["test/poa"] == pytest.approx(sum(poa.values()) / 3)
    expected = {
        "test/poa_n2": poa[2],
        "test/poa_n3": poa[3],
        "test/poa_n5": poa[5],
        "test/poa_rise_n2": poa[2] - 0.25,
        "test/poa_rise_n3": poa[3] - 0.25,
        "test/poa_rise_n5": poa[5] - 0.25,
        "test/above_n2": 1 / 3,
        "test/above_n3": 1 / 3,
        "test/above_n5": 1 / 3,
        "test/gap_n2": 3 / best[2],
        "test/gap_n3": 3 / best[3],
        "test/gap_n5": 3 / best[5],
        "test/gap_share_n2": 3 / best[2] / 2,
        "test/gap_share_n3": 3 / best[3] / 2,
        "test/gap_share_n5": 3 / best[5] / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_trained_players_are_worth_what_arithmetic_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas that always play zeros, or ones: worth 17/4 and 13/4. Returns of 2, 3 and 4."""
    (config,) = configs(*SMALL, "arm=ppo_learned").values()
    room: Any = build_module(config)
    joint = torch.eye(4, dtype=torch.float64)[[0, 3]][:, None].expand(-1, 4, -1)
    policies = joint, joint.flip(0)[:1], torch.tensor([0.1, 0.3])
    monkeypatch.setattr(room.player, "joint_policies", lambda: policies)
    game = CoordinationGame(2, 0.0, 0.5, normalise_start=True)
    del room.player.world  # a module, whose place nothing else can take
    room.player.world = SimpleNamespace(game=game)
    found = logged(room, room.on_test_epoch_end)
    assert found["test/poa"] == pytest.approx((1 + 13 / 17) / 2)
    assert found["test/poa_greedy"] == pytest.approx(13 / 17)
    assert found["test/open_ratio"] == pytest.approx(0.2)
    rewards = iter(
        [torch.tensor([[0.0, 4.0]]), torch.tensor([[3.0, 3.0]]), torch.full((1, 2), 4.0)]
    )
    room.player.world = SimpleNamespace(
        horizon=3,
        reset=lambda shape, _: torch.zeros(shape),
        observe=lambda state: state[..., None, None],
        step=lambda state, _: (state, next(rewards)),
    )
    monkeypatch.setattr(room.player, "draw", lambda _: (torch.zeros(1, 2, 2), None))
    monkeypatch.setattr(room.player.actor, "act", lambda *_, **__: None)
    assert logged(room, room.on_test_epoch_end)["test/return"] == pytest.approx(2 + 3 + 4)


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
