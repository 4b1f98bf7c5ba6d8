"""Worlds of other simulators: what is common to them, on one that answers what is foreseen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from repro.data.worlds import simulators
from repro.data.worlds.simulators import Copy, Outcome, Simulator, adroit, deepmind_control
from repro.errors import UserError


class Counter(Copy):
    """Pictures whose bytes are the number of steps; two joints."""

    actions = 2

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0

    def state(self) -> np.ndarray:
        picture = np.full((4, 4, 3), self.steps)
        picture[..., 2] = self.number
        return simulators.state_bytes(picture, np.array([self.steps / 2, self.number]))

    def reset(self, seed: int) -> np.ndarray:
        self.steps = 0
        return self.state()

    def step(self, action: np.ndarray) -> Outcome:
        self.steps += 1
        return self.state(), float(action[0]), 1.0, self.steps >= 2 + self.number, self.steps == 3


def test_copies_are_seen_in_stacked_pictures_and_joints() -> None:
    world = Simulator(Counter, 4, 3, 2, "zeros", joints=2, tasks=2, success_steps=2)
    first = world.reset(2)
    step = world.step(first, torch.tensor([[0.5, 0.0], [-1.0, 0.0]]))
    assert step.reward.tolist() == [0.5, -1.0]
    sight = world.see(torch.stack([first, step.state], 1))
    assert sight.pixels.shape == (2, 6, 4, 4)
    assert sight.pixels[:, :, 1, 2].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert sight.joints.tolist() == [[0.5, 0.0], [0.5, 1.0]]
    flags = [step.success]
    for _ in range(2):
        step = world.step(step.state, torch.zeros(2, 2))
        flags.append(step.success)
    assert step.over
    assert world.solved(torch.stack(flags)).tolist() == [True, False]  # two steps, and one


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("dm_control.suite", lambda: deepmind_control("hopper", "hop"), "dmc"),
        ("metaworld.env_dict", lambda: simulators.meta_world(["assembly"]), "metaworld"),
        ("gymnasium_robotics", lambda: adroit("door"), "adroit"),
    ],
)
def test_what_is_not_installed_is_one_line(
    module: str, make: Callable[[], Any], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"missing.*gradient-repro\[{extra}\]") as refused:
        make()
    assert len(str(refused.value).splitlines()) == 1


class FakeSuite:
    """Rewards 1 a step, ends after five; actions in [0, 4]."""

    def load(self, domain: str, task: str, task_kwargs: Any = None) -> Any:
        self.acted: list[float] = []
        self.seeds = task_kwargs

        def step(action: np.ndarray) -> Any:
            self.acted.append(float(action[0]))
            return SimpleNamespace(reward=1.0, last=lambda: len(self.acted) == 5)

        physics = SimpleNamespace(
            render=lambda h, w, camera_id: np.full((h, w, 3), camera_id + len(self.acted))
        )
        spec = SimpleNamespace(shape=(1,), minimum=np.zeros(1), maximum=np.full(1, 4.0))
        return SimpleNamespace(
            physics=physics, step=step, reset=lambda: None, action_spec=lambda: spec
        )


def test_deepmind_control_repeats_actions_in_its_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = FakeSuite()
    monkeypatch.setattr(simulators, "_import", lambda *_: suite)
    world = deepmind_control("hopper", "hop", size=4, camera=7)
    assert (world.horizon, world.stack, world.padding, world.joints) == (500, 3, "repeat", 0)
    state = world.reset(1)
    assert state.unique().tolist() == [7]
    steps = [world.step(state, torch.tensor([[0.5]])) for _ in range(3)]
    assert suite.acted == [3.0] * 5
    assert suite.seeds.keys() == {"random"}
    assert [float(step.reward) for step in steps] == [2.0, 2.0, 1.0]
    assert [step.over for step in steps] == [False, False, True]
    assert [float(step.discount) for step in steps] == [1.0, 1.0, 1.0]


class FakeArm:
    """An environment of gymnasium's kind, of Meta-World and Adroit."""

    def __init__(self, **knobs: Any) -> None:
        self.knobs, self.steps = knobs, 0
        self.action_space = SimpleNamespace(shape=(3,))
        self.camera = SimpleNamespace(pos=np.zeros(3))
        self.model = SimpleNamespace(camera=lambda name: self.camera)
        self.data = SimpleNamespace(qpos=np.arange(30.0))
        self.unwrapped = self

    def seed(self, seed: int) -> None:
        self.seeded = seed

    def reset(self, seed: int | None = None) -> None:
        self.steps = 0

    def render(self) -> np.ndarray:
        rows = np.arange(4, dtype=np.uint8)[:, None, None]
        return np.broadcast_to(rows, (4, 4, 3))

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return None, 10.0, self.steps == 4, False, {"success": self.steps == 1}


def test_meta_world_sums_rewards_and_succeeds_in_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeArm] = []

    def make(**knobs: Any) -> FakeArm:
        made.append(FakeArm(**knobs))
        return made[-1]

    table = SimpleNamespace(ALL_V3_ENVIRONMENTS={"one-v3": make, "two-v3": make})
    monkeypatch.setattr(simulators, "_import", lambda *_: table)
    world = simulators.meta_world(["one", "two"], size=4)
    state = world.reset(3)
    assert len(made) == 3
    assert made[0].knobs["camera_name"] == "corner2"
    assert made[0].camera.pos.tolist() == [0.75, 0.075, 0.7]
    assert state[0].view(3, 4, 4)[0, :, 0].tolist() == [3, 2, 1, 0]  # turned over
    first, second = (world.step(state, torch.zeros(3, 3)) for _ in range(2))
    assert first.reward.tolist() == [20.0] * 3
    assert first.success.all()
    assert not second.success.any()
    assert world.solved(torch.stack([first.success, second.success])).all()
    assert (world.tasks, world.padding, world.horizon) == (2, "zeros", 250)
    with pytest.raises(UserError, match="no task 'three'"):
        simulators.meta_world(["three"], size=4)


def test_adroit_has_joints_units_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = FakeArm()
    fake = SimpleNamespace(register_envs=lambda _: None, make=lambda name, **knobs: arm)
    monkeypatch.setattr(simulators, "_import", lambda *_: fake)
    world = adroit("pen", size=4)
    state = world.reset(1)
    assert world.see(state[:, None]).joints.tolist() == [list(range(24))]
    first, second = (world.step(state, torch.zeros(1, 3)) for _ in range(2))
    assert float(first.reward) == pytest.approx(20 / 50)
    assert [float(each.discount) for each in (first, second)] == [1.0, 0.0]
    assert (first.over, second.over) == (False, True)
    assert not world.solved(torch.ones(9, 1, dtype=torch.bool))[0]
    assert world.solved(torch.ones(10, 1, dtype=torch.bool))[0]


def test_noise_stands_in_with_the_same_sizes() -> None:
    sizes = {"stand_in": {"actions": 28, "joints": 24}}
    hand = simulators.noise(sizes, task="door", horizon=100)
    assert (hand.actions, hand.joints, hand.stack, hand.horizon) == (28, 24, 1, 100)
    sight = hand.see(hand.reset(1)[:, None])
    assert sight.pixels.shape == (1, 3, 84, 84)
    assert sight.joints.shape == (1, 24)
    assert simulators.noise({"stand_in": {"actions": 4}}, domain="dog").horizon == 500
