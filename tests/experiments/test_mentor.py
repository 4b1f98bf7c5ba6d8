"""What is special to agents that play: who they are at each scale, and what their numbers mean."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from repro.experiments.mentor import module as room_module
from rooms import configs, finished, logged, refusal, summaries

from repro.planning.rehearse import stood_in
from repro.records import files
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.report.figures import figures
from repro.training.execute import build_module

PAPER = load_paper("mentor")
SMALL = ["paper=mentor", "scale=smoke"]
NOISE = "repro.data.worlds.simulators.noise"


def test_smoke_plays(study: Study) -> None:
    found = summaries(study)
    for arm in ("none", "moe_only", "tp_only"):
        assert found[arm]["val/updates"] == 15  # from the sixth of twenty steps on
        assert "test/conflict" in found[arm]
    assert {"test/fork_top", "test/fork_random", "test/shared_share"} <= found["none"].keys()
    assert "test/information" in found["moe_only"]
    assert "test/information" not in found["none"]


def test_every_arm_is_filmed_from_the_same_start(study: Study) -> None:
    films, returns = [], {}
    for run in study.runs:
        record = run.record()
        films.append(np.load(run.artifacts_folder / "film.npy"))
        returns[record.arm, record.seed] = run.summary()["test/film_return"]
        animation: Any = Image.open(run.artifacts_folder / "film.gif")
        assert (animation.n_frames, animation.size) == (6, (160, 160))
    first, *others = films
    assert (first.shape, first.dtype) == ((6, 8, 8, 3), np.uint8)  # an episode has five steps
    assert all(np.array_equal(each[0], first[0]) for each in others)
    assert len(np.unique(np.stack([each[-1] for each in films]), axis=0)) > 1
    (axes,) = figures(study)["rollouts"].axes
    assert len(axes.images) == 6 * 5
    labels = [label.get_text() for label in axes.get_yticklabels()]
    arms = ["none", "tp_only", "wide_mlp", "moe_only", "moe_random"]
    assert labels == [f"{arm}\nreturn {returns[arm, 0]:.3g}" for arm in arms]


SIZES = {  # arm: actor's parameters, rule, exploration, exploitation, clip
    "mentor": (10_692_074, "top", "dormant", "dormant", 0.001),
    "drm_own": (3_066_074, "random", "larger", "dormant", None),
    "drm_copy": (3_066_074, "random", "larger", "dormant", None),
    "drm_sigma": (3_066_074, "random", "dormant", "dormant", None),
    "drqv2": (3_066_074, "none", "linear", "none", None),
}


def built(scale: str, arm: str) -> Any:
    """A module whose world is the stand-in, on no device."""
    (config,) = configs("paper=mentor", f"scale={scale}", f"arm={arm}").values()
    with torch.device("meta"):
        return build_module(
            OmegaConf.create(stood_in(OmegaConf.to_container(config, resolve=True)))
        )


@pytest.mark.parametrize("arm", SIZES)
def test_published_agents(arm: str) -> None:
    agent = built("full", arm).agent
    parameters, rule, exploration, mixing, clip = SIZES[arm]
    assert sum(each.numel() for each in agent.actor.parameters()) == parameters
    assert agent.perturbing.rule == rule
    assert (agent.exploration.rule, agent.mixing.rule) == (exploration, mixing)
    assert agent.actor_clip == clip
    assert (agent.gamma, agent.polyak, agent.shift) == (0.99, 0.01, 4)
    assert agent.perturbing.interval == (50_000 if arm == "drm_own" else 10_000)


def test_published_schedules() -> None:
    dog, meta, hand = (built(f"full_{name}", "mentor") for name in ("dog", "metaworld", "adroit"))
    assert sum(each.numel() for each in dog.agent.actor.parameters()) == 12_738_274
    assert (meta.player.replay.n_step, meta.agent.gamma) == (10, 0.97)
    assert (meta.agent.mixing.rule, meta.agent.perturbing.interval) == ("constant", 50_000)
    assert (hand.player.world.joints, hand.player.world.stack) == (24, 1)
    assert hand.agent.mixing.expectile == 0.6
    steps = {"full": 1_550_000, "full_dog": 15_050_000, "full_metaworld": 1_050_000}
    for scale, agent_steps in (steps | {"full_adroit": 3_050_000}).items():
        (config,) = configs("paper=mentor", f"scale={scale}", "arm=mentor").values()
        assert config.training.epochs * config.dataset.ticks == agent_steps


def test_a_published_agent_learns_from_its_kind_of_world(tmp_path: Path) -> None:
    """Every scale begins, on pictures of noise, reduced to what a test can take."""
    for scale, world in (("full_metaworld", "meta_world"), ("full_adroit", "adroit")):
        small = [text for text in PAPER.reduced[scale] if "dataset.ticks" not in text]
        run = finished(
            tmp_path / scale,
            *("paper=mentor", f"scale={scale}", "arm=mentor", "seed=0", *small),
            f"worlds.{world}._target_={NOISE}",
            *(f"worlds.{world}.horizon=12", f"worlds.{world}.size=20", "dataset.ticks=15"),
        )
        assert run.summary()["val/updates"] > 0


# -- Numbers ---------------------------------------------------------------------------------------


@pytest.fixture
def room() -> Any:
    (config,) = configs(*SMALL, "arm=moe_only", "module.film_frames=0").values()
    return build_module(config)


def row(success: float, updates: int = 9, **others: float) -> dict[str, float]:
    return {"success": success, "return": 10 * success, "updates": updates} | others


def test_validations_come_together(room: Any) -> None:
    forks = {"fork_none": 0.5, "fork_top": 0.4, "fork_recent": 0.25, "fork_random": 0.1}
    room.rows = [
        row(0.0, 3, conflict=-0.9, undefined=1.0, **dict.fromkeys(forks, 0.0)),
        row(0.2, 6, conflict=-0.1, undefined=0.5),
        row(0.6, 9, conflict=-0.3, undefined=0.0, **forks),
        row(1.0, 12, conflict=0.0, undefined=0.0, **{k: v + 0.2 for k, v in forks.items()}),
    ]
    room.played = lambda *_: (7.0, 0.75)
    room.information = lambda mixture: 0.5 if mixture is room.mixture else 0.125
    found = logged(room, room.on_test_epoch_end)
    assert found["test/success"] == 0.75
    assert found["test/return"] == 7.0
    assert found["test/area"] == pytest.approx(0.45)
    assert found["test/return_area"] == pytest.approx(4.5)
    assert found["test/late_area"] == pytest.approx(0.8)  # after the sixth update
    assert found["test/stuck"] == 0
    assert found["test/conflict"] == pytest.approx(-0.2)
    assert found["test/conflicts"] == 2
    assert found["test/undefined"] == pytest.approx(0.25)
    assert found["test/information"] == 0.5
    assert found["test/information_initial"] == 0.125
    assert found["test/forks"] == 2
    assert found["test/fork_none"] == pytest.approx(0.6)
    assert found["test/fork_top"] == pytest.approx(0.5)
    assert found["test/fork_recent"] == pytest.approx(0.35)
    assert found["test/fork_random"] == pytest.approx(0.2)


def test_an_agent_that_is_stuck_counts_with_what_it_has(room: Any) -> None:
    room.rows = [row(0.0, conflict=-0.5), row(0.05, conflict=-0.25, fork_top=0.05)]
    found = room.summed()
    assert (found["stuck"], found["forks"], found["conflicts"]) == (1.0, 0, 0)
    assert found["fork_top"] == 0.05
    assert found["conflict"] == pytest.approx(-0.375)


def test_forks_come_after_every_so_many_validations(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "forks", lambda *_, score: {"fork_top": score()})
    monkeypatch.setattr(room.player, "replay", SimpleNamespace(size=1))
    room.played, room.mixture, room.pairs, room.fork_every = lambda *_: (0.0, 0.5), None, [], 3
    for _ in range(7):
        room.rows.append(room.look())
    assert [number for number, each in enumerate(room.rows, 1) if "fork_top" in each] == [3, 6]


@pytest.mark.parametrize(("edge", "enlarged"), [(8, 20), (84, 1), (200, 1)])
def test_a_film_is_shown_at_about_160_pixels(
    edge: int, enlarged: int, room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[Path, Any] = {}
    frames = torch.zeros(5, 3, edge, edge, dtype=torch.uint8)
    monkeypatch.setattr(room_module, "filmed", lambda *_: (frames, 7.0))
    monkeypatch.setattr(files, "make_folder", lambda _: None)
    monkeypatch.setattr(np, "save", kept.__setitem__)
    monkeypatch.setattr(
        room_module, "save_animation", lambda shown, file, by: kept.update({file: (len(shown), by)})
    )
    room.film_frames, room.rows = 5, [row(0.5)]
    room.played, room.information = lambda *_: (0.0, 0.0), lambda _: 0.0
    room.trainer = SimpleNamespace(default_root_dir="run")
    assert logged(room, room.on_test_epoch_end)["test/film_return"] == 7
    assert kept[Path("run/artifacts/film.npy")].shape == (5, edge, edge, 3)
    assert kept[Path("run/artifacts/film.gif")] == (5, enlarged)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method=gradient_noise", "mentor takes method=mentor/small or method=mentor/published"),
        ("method.agent.hidden=moo", "Did you mean 'moe'"),
        ("method.agent.moe.top_k=9", "top_k=9 is more than its experts=4"),
        ("method.n_step=6", "n_step=6 is more than the 5 of an episode"),
        ("method.agent.perturbing.rule=tip", "Did you mean 'top'"),
    ],
)
def test_a_bad_knob_is_one_line(typed: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, *SMALL, "arm=moe_only", "seed=0", typed)
