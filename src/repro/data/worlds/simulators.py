"""Simulators of other packages, seen in pictures: DeepMind Control, Meta-World, Adroit.

Each copy lives in Python. A state is what it was seen in, a row of bytes, which is what a replay
keeps; an episode that is under way is lost with the process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from repro.data.worlds.sights import Sight, Step
from repro.errors import UserError
from repro.knobs import Count, Natural, checked

Outcome = tuple[np.ndarray, float, float, bool, bool]  # state, reward, discount, success, over


class Copy(ABC):
    """One environment, opened when it is first needed."""

    actions: int

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """The bytes of a first state."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Outcome:
        """Acts in [-1, 1]^actions for as many simulator steps as an action is repeated."""


class Simulator:
    """Copies of an environment: a `repro.data.worlds.sights.World`.

    Args:
        open_copy: opens copy i.
        size: height and width of pictures.
        horizon: steps of an episode, each of ``action_repeat`` simulator steps.
        stack: frames that make an observation.
        padding: what stands for frames before the first.
        joints: readings beside the picture.
        tasks: copy i has task i modulo this number.
        success_steps: successful steps that make an episode a success.
    """

    resumes = False

    def __init__(
        self,
        open_copy: Callable[[int], Copy],
        size: int,
        horizon: int,
        stack: int,
        padding: Literal["repeat", "zeros"],
        joints: int = 0,
        tasks: int = 1,
        success_steps: int = 1,
    ) -> None:
        self.shape = (3, size, size)
        self.horizon, self.stack, self.joints, self.tasks = horizon, stack, joints, tasks
        self.padding, self.success_steps = padding, success_steps
        self._open, self._copies = open_copy, [open_copy(0)]
        self.actions = self._copies[0].actions

    def reset(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Begins an episode in each of so many copies."""
        while len(self._copies) < count:
            self._copies.append(self._open(len(self._copies)))
        seeds = torch.randint(2**31, (count,), generator=generator).tolist()
        pairs = zip(self._copies, seeds, strict=False)
        return torch.from_numpy(np.stack([each.reset(seed) for each, seed in pairs]))

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Acts in the first copies, as many as there are actions; they know their state."""
        del state
        rows = zip(self._copies, action.numpy(), strict=False)
        states, reward, discount, success, over = zip(
            *(each.step(row) for each, row in rows), strict=True
        )
        return Step(
            torch.from_numpy(np.stack(states)),
            torch.tensor(reward, dtype=torch.float32),
            torch.tensor(discount, dtype=torch.float32),
            torch.tensor(success),
            any(over),
        )

    def see(self, frames: Tensor) -> Sight:
        """Pictures of stacked states (B, K, bytes), and the joint readings of the last."""
        B, K, _ = frames.shape
        pixels = math.prod(self.shape)
        felt = frames[:, -1, pixels:].contiguous().view(torch.float32)
        channels, *sides = self.shape
        return Sight(frames[..., :pixels].reshape(B, K * channels, *sides), felt)

    def solved(self, success: Tensor) -> Tensor:
        """Those with enough successful steps."""
        return success.sum(0) >= self.success_steps


def state_bytes(picture: np.ndarray, joints: np.ndarray | None = None) -> np.ndarray:
    """A picture (H, W, 3) and readings as one row of bytes, channels first."""
    pixels = np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.uint8).reshape(-1)
    if joints is None:
        return pixels
    return np.concatenate([pixels, np.asarray(joints, dtype=np.float32).view(np.uint8)])


def _import(module: str, package: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{package} is missing ({error}): pip install 'gradient-repro[{extra}]'."
        ) from None


# -- DeepMind Control ------------------------------------------------------------------------------


class _ControlCopy(Copy):
    def __init__(self, domain: str, task: str, size: int, repeat: int, camera: int) -> None:
        self._suite = _import("dm_control.suite", "dm_control", "dmc")
        self._of = (domain, task)
        self._size, self._repeat, self._camera = size, repeat, camera
        try:
            self._env = self._suite.load(domain, task)
        except (ValueError, KeyError) as error:
            raise UserError(f"dm_control has no task {domain}-{task}: {error}.") from None
        self._seeded = False
        spec = self._env.action_spec()
        self._low, self._high = spec.minimum, spec.maximum
        self.actions = int(np.prod(spec.shape))

    def _state(self) -> np.ndarray:
        picture = self._env.physics.render(self._size, self._size, camera_id=self._camera)
        return state_bytes(picture)

    def reset(self, seed: int) -> np.ndarray:
        if not self._seeded:
            self._env = self._suite.load(*self._of, task_kwargs={"random": seed})
            self._seeded = True
        self._env.reset()
        return self._state()

    def step(self, action: np.ndarray) -> Outcome:
        action = self._low + (action.astype(np.float64) + 1) / 2 * (self._high - self._low)
        reward, over = 0.0, False
        for _ in range(self._repeat):
            time = self._env.step(action)
            reward += time.reward or 0.0
            over = time.last()
            if over:
                break
        # The published wrapper turns a discount of 0 into 1.
        return self._state(), reward, 1.0, False, over


@checked
def deepmind_control(
    domain: str,
    task: str,
    size: Count = 84,
    action_repeat: Count = 2,
    stack: Count = 3,
    camera: Natural = 0,
    **_: Any,
) -> Simulator:
    """A task of the DeepMind Control Suite: 1000 simulator steps, judged by return.

    Args:
        domain: such as ``hopper``.
        task: such as ``hop``.
        size: of pictures.
        action_repeat: simulator steps of an action.
        stack: frames of an observation; the first one is repeated.
        camera: 0, and 2 for quadrupeds.

    A `UserError` says so where dm_control is not installed, or has no such task.
    """

    def open_copy(_: int) -> Copy:
        return _ControlCopy(domain, task, size, action_repeat, camera)

    return Simulator(open_copy, size, 1000 // action_repeat, stack, "repeat")


# -- Meta-World ------------------------------------------------------------------------------------


class _MetaCopy(Copy):
    def __init__(self, task: str, size: int, repeat: int) -> None:
        known = _import("metaworld.env_dict", "metaworld", "metaworld").ALL_V3_ENVIRONMENTS
        if f"{task}-v3" not in known:
            raise UserError(f"metaworld has no task '{task}'; one is assembly.")
        self._env = known[f"{task}-v3"](
            render_mode="rgb_array", camera_name="corner2", width=size, height=size
        )
        # Places are drawn anew at each reset, and no list of tasks is asked for.
        vars(self._env).update(_freeze_rand_vec=False, _set_task_called=True)
        self._env.model.camera("corner2").pos[:] = (0.75, 0.075, 0.7)
        self._repeat = repeat
        self.actions = int(self._env.action_space.shape[0])

    def _state(self) -> np.ndarray:
        return state_bytes(np.asarray(self._env.render())[::-1])  # it renders upside down

    def reset(self, seed: int) -> np.ndarray:
        self._env.seed(seed)
        self._env.reset()
        return self._state()

    def step(self, action: np.ndarray) -> Outcome:
        reward, success, over = 0.0, False, False
        for _ in range(self._repeat):
            _, paid, ended, cut, info = self._env.step(action)
            reward += float(paid)
            success = success or bool(info["success"])
            over = bool(ended or cut)
            if over:
                break
        return self._state(), reward, 1.0, success, over


@checked
def meta_world(
    tasks: Sequence[str],
    size: Count = 84,
    action_repeat: Count = 2,
    stack: Count = 3,
    horizon: Count = 250,
    **_: Any,
) -> Simulator:
    """Tasks of Meta-World, from pictures alone, with goals drawn anew for every episode.

    Args:
        tasks: such as ``[assembly]``; several take turns over the copies.
        size: of pictures.
        action_repeat: simulator steps of an action, whose rewards are summed.
        stack: frames of an observation; those before the first are black.
        horizon: steps of an episode, which succeeds if any step does.

    A `UserError` says so where metaworld is not installed, or has no such task.
    """
    names = list(tasks)

    def open_copy(i: int) -> Copy:
        return _MetaCopy(names[i % len(names)], size, action_repeat)

    return Simulator(open_copy, size, horizon, stack, "zeros", tasks=len(names))


# -- Adroit ----------------------------------------------------------------------------------------

ADROIT = {  # task: environment, what rewards are divided by, successful steps, camera
    "door": ("AdroitHandDoor-v1", 20.0, 26, "top"),
    "hammer": ("AdroitHandHammer-v1", 100.0, 26, "top"),
    "pen": ("AdroitHandPen-v1", 50.0, 21, "vil_camera"),
}
HAND = 24  # joints that are read beside the picture


class _HandCopy(Copy):
    def __init__(self, task: str, size: int, repeat: int) -> None:
        gymnasium = _import("gymnasium", "gymnasium", "adroit")
        robotics = _import("gymnasium_robotics", "gymnasium_robotics", "adroit")
        gymnasium.register_envs(robotics)
        name, self._unit, _, camera = ADROIT[task]
        self._env = gymnasium.make(
            name, render_mode="rgb_array", width=size, height=size, camera_name=camera
        )
        self._repeat = repeat
        self.actions = int(self._env.action_space.shape[0])

    def _state(self) -> np.ndarray:
        joints = self._env.unwrapped.data.qpos[:HAND]
        return state_bytes(np.asarray(self._env.render()), joints)

    def reset(self, seed: int) -> np.ndarray:
        self._env.reset(seed=seed)
        return self._state()

    def step(self, action: np.ndarray) -> Outcome:
        reward, success, ended, cut = 0.0, False, False, False
        for _ in range(self._repeat):
            _, paid, ended, cut, info = self._env.step(action)
            reward += float(paid) / self._unit
            success = success or bool(info["success"])
            if ended or cut:
                break
        return self._state(), reward, float(not ended), success, bool(ended or cut)


@checked
def adroit(
    task: Literal["door", "hammer", "pen"],
    size: Count = 84,
    action_repeat: Count = 2,
    horizon: Count = 100,
    **_: Any,
) -> Simulator:
    """A task of the Adroit hand: one picture and 24 joints.

    Args:
        task: which.
        size: of pictures.
        action_repeat: simulator steps of an action.
        horizon: steps of an episode.

    A `UserError` says so where gymnasium-robotics is not installed.
    """

    def open_copy(_: int) -> Copy:
        return _HandCopy(task, size, action_repeat)

    needed = ADROIT[task][2] // action_repeat
    return Simulator(open_copy, size, horizon, 1, "repeat", HAND, success_steps=needed)


# -- What stands in --------------------------------------------------------------------------------


class _NoiseCopy(Copy):
    def __init__(self, actions: int, size: int, joints: int) -> None:
        self.actions, self._size, self._joints = actions, size, joints
        self._random = np.random.default_rng(0)

    def reset(self, seed: int) -> np.ndarray:
        self._random = np.random.default_rng(seed)
        return self.step(np.zeros(self.actions))[0]

    def step(self, action: np.ndarray) -> Outcome:
        picture = self._random.integers(256, size=(self._size, self._size, 3), dtype=np.uint8)
        state = state_bytes(picture, self._random.standard_normal(self._joints))
        return state, float(action.sum()), 1.0, False, False


@checked
def noise(
    info: Any,
    size: Count = 84,
    action_repeat: Count = 2,
    stack: Count = 3,
    horizon: Natural = 0,
    tasks: Sequence[str] = ("noise",),
    **_: Any,
) -> Simulator:
    """Stands in for a simulator that is not installed: pictures are noise.

    Args:
        info: whose ``stand_in`` has ``actions``, and where there are any ``joints``.
        size: of pictures.
        action_repeat: see `deepmind_control`.
        stack: likewise.
        horizon: steps of an episode; 0: 1000 simulator steps.
        tasks: see `meta_world`.
    """
    sizes = info["stand_in"]
    joints = sizes.get("joints", 0)

    def open_copy(_: int) -> Copy:
        return _NoiseCopy(sizes["actions"], size, joints)

    steps = horizon or 1000 // action_repeat
    stack = 1 if joints else stack
    return Simulator(open_copy, size, steps, stack, "repeat", joints, len(tasks))
