"""Agents that are trained by playing, and what is asked of them on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.worlds.sights import World
from repro.errors import UserError
from repro.knobs import Count, Natural, NonNegative, Probability, checked
from repro.methods.mentor import (
    Player,
    TopKMoE,
    TopSet,
    evaluate,
    filmed,
    forks,
    perturbed_weights,
    task_conflict,
    task_information,
)
from repro.records import files
from repro.records.names import ARTIFACTS
from repro.toolbox.animations import save_animation
from repro.toolbox.method import OptimizerFactory
from repro.training.lightning import counted_step
from repro.training.procedure import Procedure

VAL, TEST, FORK, FILM = range(4)  # seeds of first states
ANIMATED = 160  # pixels of the animation's edge, about


class Play(Procedure):
    """Trains a player, and looks at it after each epoch.

    Games are simulated: there is no data. All that is measured draws its random numbers apart, so
    that a run is the same however closely it is looked at.

    Args:
        method: a `repro.methods.mentor.Player`.
        optimizer: called with parameters, returns an optimizer.
        trial: another copy of the player's world, to evaluate in.
        seed: of the first states of all evaluations.
        episodes: of an evaluation.
        solved_from: validations with a success below this have an agent that is stuck.
        pairs: tasks that are opposed, whose gradients are compared; empty: none are.
        task_states: of each task, for what is measured task by task.
        fork_every: epochs between two forks, in which each rule of perturbation is tried on a copy
            of the actor; 0: never.
        fork_alpha: share of the weights that is kept.
        fork_from: success from which on an agent is forked.
        fork_episodes: after each rule, from the same starts.
        film_frames: that are kept of one episode after training; 0: none.
        **options: see `Procedure`.

    Raises:
        UserError: the method does not play.
    """

    KEPT: ClassVar = ("rows",)
    METRICS: ClassVar = {
        "train/*": "means of losses over an epoch",
        "val/return": "mean return of an episode by the actor's mean action",
        "val/success": "share of episodes that succeed",
        "val/beta": "share of dormant neurons",
        "val/updates": "so far",
        "val/conflict": "mean of min(cosine, 0) between gradients of opposed tasks",
        "val/undefined": "share of opposed pairs whose cosine does not exist",
        "val/information": "mutual information of task and experts, nats",
        "val/fork_*": "success of a copy of the actor after a perturbation",
        "val/fresh_*": "success of what it was mixed with",
        "val/shared_share": "share of members that the best and the latest agents have in common",
        "val/area": "mean success so far",
    } | {
        f"test/{name}": meaning
        for name, meaning in {
            "return": "at the end, see val/",
            "success": "at the end",
            "area": "mean of val/success",
            "late_area": "likewise, from the first perturbation on",
            "return_area": "mean of val/return",
            "stuck": "1 if the success of the last validation is below solved_from",
            "conflict": "mean of val/conflict where success is in [.1, .9], or of all",
            "conflicts": "number of these validations",
            "undefined": "likewise, of val/undefined",
            "information": "at the end",
            "information_initial": "likewise, of the gate at initialisation on trained features",
            "fork_*": "mean of val/fork_* over forks",
            "fresh_*": "likewise",
            "shared_share": "likewise",
            "film_return": "return of the episode that is kept in pictures",
            "forks": "number of forks from fork_from on; without any, the last fork counts",
        }.items()
    }

    @checked
    def __init__(
        self,
        method: Any,
        optimizer: OptimizerFactory,
        trial: World,
        seed: int = 0,
        episodes: Count = 10,
        solved_from: Probability = 0.3,
        pairs: Sequence[Sequence[int]] = (),
        task_states: Count = 512,
        fork_every: Natural = 0,
        fork_alpha: NonNegative = 0.6,
        fork_from: Probability = 0.3,
        fork_episodes: Count = 256,
        film_frames: Natural = 0,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        if not isinstance(method, Player):
            raise UserError(
                "mentor takes method=mentor/small or method=mentor/published; "
                f"{type(method).__name__} does not play."
            )
        self.player, self.trial, self.seed = method, trial, seed
        self.episodes, self.solved_from = episodes, solved_from
        self.pairs = [(int(i), int(j)) for i, j in pairs]
        self.task_states = task_states
        self.fork_every, self.fork_alpha, self.fork_from = fork_every, fork_alpha, fork_from
        self.fork_episodes, self.film_frames = fork_episodes, film_frames
        hidden = self.agent.actor.hidden
        self.mixture = hidden if isinstance(hidden, TopKMoE) and trial.tasks > 1 else None
        self.untrained = copy.deepcopy(self.mixture)
        if self.untrained is not None:
            self.untrained.requires_grad_(False)
        self.rows: list[dict[str, float]] = []  # of all validations
        members = self.agent.perturbing.members  # of actors, for forks of any arm
        self.best, self.latest = TopSet(members), TopSet(members, "latest")

    @property
    def agent(self) -> Any:
        """Who plays."""
        return self.player.agent

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """A step in every copy of the world, and an update where one is due."""
        with counted_step(self.optimizers()) as optimizer:
            losses = self.player.advance(optimizer)
        if self.fork_every and not self.player.played:
            for members in (self.best, self.latest):
                members.offer(self.player.score, perturbed_weights([self.agent.actor]))
        for name, loss in losses.items():
            self.log(f"train/{name}", loss, on_step=False, on_epoch=True)
        return losses or {"loss": torch.zeros((), device=self.device)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the player remembers, and the sets of actors."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["player"] = self.player.memory()
        checkpoint["sets"] = [self.best.state_dict(), self.latest.state_dict()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        super().on_load_checkpoint(checkpoint)
        self.player.recall(checkpoint["player"])
        for members, state in zip((self.best, self.latest), checkpoint["sets"], strict=True):
            members.load_state_dict(state)

    # -- Measures ---------------------------------------------------------------------------------

    def played(self, seed: int, count: int) -> tuple[float, float]:
        """Mean return and success, from first states that are the same in all of this run."""
        generator = generator_for(self.seed, seed)
        returns, solved = evaluate(self.agent, self.trial, count, generator)
        return float(returns.mean()), float(solved.mean())

    def look(self) -> dict[str, float]:
        """All that a validation measures."""
        result, success = self.played(VAL, self.episodes)
        found = {"return": result, "success": success, "beta": float(self.agent.beta)}
        found["updates"] = float(self.agent.updates)
        if not self.player.replay.size:
            return found
        if self.pairs:
            found |= task_conflict(self.player, self.pairs, self.task_states)
        if self.mixture is not None:
            found["information"] = self.information(self.mixture)
        if self.fork_every and (len(self.rows) + 1) % self.fork_every == 0:
            found |= forks(
                self.agent.actor,
                *(self.best, self.latest, self.fork_alpha),
                score=lambda: self.played(FORK, self.fork_episodes)[1],
            )
        return found

    def film(self, folder: Path) -> float:
        """Plays an episode that begins alike in all arms, and returns its return.

        Its frames (T, H, W, C) are ``film.npy`` in the folder, and one after another ``film.gif``.
        """
        frames, result = filmed(self.agent, self.trial, self.film_frames, generator_for(FILM))
        pictures = frames.permute(0, 2, 3, 1).numpy()
        files.make_folder(folder)
        np.save(folder / "film.npy", pictures)
        save_animation(list(pictures), folder / "film.gif", max(1, ANIMATED // pictures.shape[1]))
        return result

    def information(self, mixture: TopKMoE) -> float:
        """I(task; expert) of a mixture on the features of now."""
        return task_information(self.player, mixture, self.task_states)

    def apart(self) -> Any:
        """A context of random numbers of its own."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def on_validation_epoch_end(self) -> None:
        """Logs what the agent does now."""
        self.player.eval()
        with self.apart(), torch.inference_mode(False):
            torch.manual_seed(len(self.rows))
            row = self.look()
        self.rows.append(row)
        area = {"val/area": _mean(self.rows, "success")}
        self.log_dict({f"val/{name}": value for name, value in row.items()} | area)

    def on_test_epoch_end(self) -> None:
        """Logs how the agent ended and what came together on the way, and keeps an episode."""
        self.player.eval()
        with self.apart(), torch.inference_mode(False):
            torch.manual_seed(0)
            result, success = self.played(TEST, self.episodes)
            ended = {"return": result, "success": success}
            if self.mixture is not None and self.untrained is not None:
                ended["information"] = self.information(self.mixture)
                ended["information_initial"] = self.information(self.untrained)
            if self.film_frames:
                ended["film_return"] = self.film(Path(self.trainer.default_root_dir) / ARTIFACTS)
        self.log_dict({f"test/{name}": value for name, value in (ended | self.summed()).items()})

    def summed(self) -> dict[str, float]:
        """What the validations say together."""
        first = self.agent.perturbing.interval
        late = [row for row in self.rows if row["updates"] > first]
        learning = [row for row in self.rows if 0.1 <= row["success"] <= 0.9]
        forked = [row for row in self.rows if "fork_top" in row]
        able = [row for row in forked if row["success"] >= self.fork_from]
        found = {
            "area": _mean(self.rows, "success"),
            "return_area": _mean(self.rows, "return"),
            "late_area": _mean(late, "success"),
            "stuck": float(self.rows[-1]["success"] < self.solved_from),
            "conflict": _mean(learning or self.rows, "conflict"),
            "undefined": _mean(learning or self.rows, "undefined"),
            "conflicts": len(learning),
            "forks": len(able),
        }
        for name in [name for row in forked[-1:] for name in row if name.startswith(("f", "sh"))]:
            found[name] = _mean(able or forked[-1:], name)
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: ``on_validation_epoch_end`` plays."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: ``on_test_epoch_end`` plays."""


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """The mean of what is a number; NaN where nothing is."""
    values = [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]
    return sum(values) / len(values) if values else math.nan
