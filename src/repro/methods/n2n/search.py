"""Searches: what proposes tables of actions and learns from the rewards of the students they make.

In a plain loop::

    actions = search.propose(teacher, count=5, generator=generator)
    students = [search.edit.apply(teacher, each) for each in actions]
    search.learn(teacher, actions, rewards_of(students))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Fraction, NonNegative, Positive, checked
from repro.methods.n2n.architecture import Architecture
from repro.methods.n2n.edits import Edit
from repro.methods.n2n.policies import RemovalPolicy, ShrinkagePolicy
from repro.toolbox.score_function import MovingBaseline, surrogate


@checked
@dataclass(frozen=True)
class Budget:
    """How long a search goes on: until one of these is spent.

    Args:
        updates: of the policy.
        rollouts: students that are proposed in each.
        trainings: students that are trained, each architecture once; None: as many as proposed.
        least_entropy: of the policy, in nat for an action that changes something; a policy that
            has become sure of itself explores nothing, and is of no use on another teacher.
    """

    updates: Count = 40
    rollouts: Count = 5
    trainings: Count | None = None
    least_entropy: NonNegative = 0.0

    def is_spent(self, updates: int, trainings: int, entropy: float = math.inf) -> bool:
        """Whether the search is over."""
        return (
            updates >= self.updates
            or trainings >= (self.trainings or math.inf)
            or entropy < self.least_entropy
        )


class Search(nn.Module, ABC):
    """Proposes actions; its state dictionary and its `memory` are all that it knows.

    Attributes:
        edit: what the actions do.
    """

    edit: Edit

    @abstractmethod
    def propose(self, architecture: Architecture, count: int, generator: torch.Generator) -> Tensor:
        """Tables of actions (count, …) for an architecture."""

    @abstractmethod
    def learn(
        self, architecture: Architecture, actions: Tensor, rewards_M: Tensor
    ) -> dict[str, float]:
        """Learns from the rewards of what was proposed; returns what it measured."""

    @abstractmethod
    def memory(self) -> dict[str, Any]:
        """What its state dictionary does not hold: tensors, numbers, lists and dictionaries."""

    @abstractmethod
    def remember(self, memory: dict[str, Any]) -> None:
        """Takes over a `memory`."""

    def attach(self, _model: nn.Module) -> None:
        """Refuses: this is no way to train.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{type(self).__name__} looks for a smaller architecture: use it with paper=n2n."
        )


class Reinforce(Search):
    """A policy that ascends ``(1/m) Σ_k Σ_t ∇ log π(a_kt) (R_k - b)`` (Williams 1992), by Adam.

    b is the exponential moving average of the batches' mean rewards, from before this batch; for
    the first batch it is that batch's own mean. Only entries that change something are reinforced.

    Args:
        policy: what is trained, with the edit that it is for.
        lr: of Adam.
        decay: of the moving average.
        entropy: weight of the mean entropy of the entries that change something, which is added
            to the objective.
        learns: False keeps the policy as it is: a random search.
        advantage: ``own``, R_k - b; ``shared``, as released: the batch's mean - b for each of its
            members, so that nothing says which of them was good.
        baseline: ``average``, as above; ``released``: the sum of the earlier batches' means over
            one more than there are, 0 at first.
        steps: one of Adam for a ``batch``, or, as released, for each ``rollout`` in it.
        reinforced: ``free`` entries; ``all``, as released, with what was drawn even where something
            else was done; ``forced`` alone, as an older script does by mistake.
    """

    @checked
    def __init__(
        self,
        policy: RemovalPolicy | ShrinkagePolicy,
        lr: Positive = 3e-3,
        decay: Fraction = 0.8,
        entropy: NonNegative = 0.0,
        learns: bool = True,
        advantage: Literal["own", "shared"] = "own",
        baseline: Literal["average", "released"] = "average",
        steps: Literal["batch", "rollout"] = "batch",
        reinforced: Literal["free", "all", "forced"] = "free",
    ) -> None:
        super().__init__()
        self.policy, self.learns, self.entropy = policy, learns, entropy
        self.advantage, self.baseline_kind = advantage, baseline
        self.steps, self.reinforced = steps, reinforced
        self.edit = policy.edit
        trained = [each for each in policy.parameters() if each.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr)
        self.baseline = MovingBaseline(decay) if baseline == "average" else ReleasedBaseline()

    @override
    def propose(self, architecture: Architecture, count: int, generator: torch.Generator) -> Tensor:
        # What is reinforced has to be drawn; what is not would only disturb later decisions.
        everywhere = self.reinforced != "free"
        return self.policy.sample(architecture, count, generator, everywhere)

    @override
    def learn(
        self, architecture: Architecture, actions: Tensor, rewards_M: Tensor
    ) -> dict[str, float]:
        free = self.edit.free(architecture).to(actions.device)
        with torch.no_grad():
            _, entropies = self.policy.log_probs(architecture, actions)
        measured = {"entropy": float(entropies[:, free].mean()) if free.any() else 0.0}
        if self.learns:
            advantages_M = self.advantages(rewards_M.to(self.baseline.average))
            parts = len(actions) if self.steps == "rollout" else 1
            for some, their in zip(actions.chunk(parts), advantages_M.chunk(parts), strict=True):
                self.optimizer.zero_grad()
                self.loss(architecture, some, their).backward()
                self.optimizer.step()
        return measured

    def advantages(self, rewards_M: Tensor) -> Tensor:
        """What each reward exceeds the baseline by; then moves the baseline."""
        own = self.advantage == "own"
        return (rewards_M if own else rewards_M.mean().expand_as(rewards_M)) - self.baseline(
            rewards_M
        )

    def loss(self, architecture: Architecture, actions: Tensor, advantages_M: Tensor) -> Tensor:
        """Minus what is ascended, for given advantages."""
        free = self.edit.free(architecture).to(actions.device)
        counted = {"free": free, "all": torch.ones_like(free), "forced": ~free}[self.reinforced]
        log_probs, entropies = self.policy.log_probs(architecture, actions)
        sums_M = (log_probs * counted).flatten(1).sum(1)
        bonus = (entropies * free).sum() / free.sum().clamp(min=1) / len(actions)
        return -surrogate(sums_M, advantages_M) - self.entropy * bonus

    @override
    def memory(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    @override
    def remember(self, memory: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(memory)


class ReleasedBaseline(nn.Module):
    """The sum of the earlier batches' means over one more than there are."""

    average: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))  # of the earlier batches
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, rewards_M: Tensor) -> Tensor:
        """Returns the baseline for these rewards, and lets them move it."""
        before = int(self.batches)
        baseline = self.average * before / (before + 1)
        self.average += (rewards_M.mean() - self.average) / (before + 1)
        self.batches += 1
        return baseline


class HillClimbing(Search):
    """Changes the best table so far at random places, and moves where something better is found.

    Args:
        edit: what the actions do.
        changes: entries that a proposal changes, each to another action at random.
    """

    @checked
    def __init__(self, edit: Any, changes: Count = 1) -> None:
        super().__init__()
        self.edit, self.changes = edit, changes
        self.best: Tensor | None = None
        self.reward = -float("inf")

    @override
    def propose(self, architecture: Architecture, count: int, generator: torch.Generator) -> Tensor:
        free = self.edit.free(architecture)
        best = self._best(free)
        places = free.flatten().nonzero().flatten()
        if not len(places):
            return best.repeat(count, *[1] * best.dim())
        proposals_MP = best.flatten().repeat(count, 1)
        for proposal_P in proposals_MP:
            order = torch.randperm(len(places), generator=generator)[: self.changes]
            shift = torch.randint(1, self.edit.choices, order.shape, generator=generator)
            chosen = places[order]
            proposal_P[chosen] = (proposal_P[chosen] + shift) % self.edit.choices
        return proposals_MP.view(count, *best.shape)

    @override
    def learn(
        self, architecture: Architecture, actions: Tensor, rewards_M: Tensor
    ) -> dict[str, float]:
        highest = int(rewards_M.argmax())
        if float(rewards_M[highest]) > self.reward:
            self.best, self.reward = actions[highest].clone(), float(rewards_M[highest])
        return {}

    def _best(self, free: Tensor) -> Tensor:
        """The table that proposals start from: at first the one that changes nothing."""
        if self.best is None:
            return torch.full(free.shape, self.edit.identity, dtype=torch.int64)
        return self.best

    @override
    def memory(self) -> dict[str, Any]:
        return {"best": self.best, "reward": self.reward}

    @override
    def remember(self, memory: dict[str, Any]) -> None:
        self.best, self.reward = memory["best"], memory["reward"]
