"""What proposals are worth: students are trained briefly, each architecture once, and rewarded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from repro.data.base.iterators import generator_for
from repro.methods.n2n.architecture import (
    Architecture,
    InvalidArchitectureError,
    count_parameters,
)
from repro.methods.n2n.rewards import INVALID, Limit, reward
from repro.methods.n2n.students import Batch, Epochs, Recipe, accuracies, fresh, train


@dataclass(frozen=True)
class Rollout:
    """A student that was proposed.

    Attributes:
        update: of the policy, from 0.
        reward: what it is worth.
        parameters: how many it has; 0 for what is not valid.
        accuracy: on held-out data.
        within: whether it is within the limit.
        valid: whether it is smaller than what the search starts from, and can be built.
    """

    update: int
    reward: float
    parameters: int = 0
    accuracy: float = 0.0
    within: bool = False
    valid: bool = True


@dataclass
class Judge:
    """Rewards students; what was trained once is never trained again.

    Args:
        guide: the trained network that students imitate, where the data are.
        accuracy: of the teacher, on held-out data.
        input_shape: of one example.
        epochs: the training batches of an epoch.
        held_out: returns the batches on which students are measured.
        recipe: how they are trained.
        parameters: of the teacher; None: as many as the guide has.
        limit: on students.
        seed: of their weights, with their architecture.
        least_inputs: of a linear layer; released for stage 2: 10.
        uniform_gammas: see `repro.methods.n2n.fresh`.
        known: accuracies by the `key` of an architecture, to go on from.
    """

    guide: nn.Module
    accuracy: float
    input_shape: Sequence[int]
    epochs: Epochs
    held_out: Callable[[], Iterable[Batch]]
    recipe: Recipe
    parameters: int | None = None
    limit: Limit = field(default_factory=Limit)
    seed: int = 0
    least_inputs: int = 1
    uniform_gammas: bool = False
    known: dict[str, float] = field(default_factory=dict)

    def rate(
        self, proposals: Sequence[Architecture], most: float = float("inf"), update: int = 0
    ) -> list[Rollout]:
        """Trains what is new among the proposals, side by side, and rewards all of them.

        Args:
            proposals: students.
            most: what has as many parameters, or more, is not valid.
            update: the number of the policy's update.
        """
        sizes = [self.size(each) for each in proposals]
        valid = [size is not None and size < most for size in sizes]
        self._train([each for each, is_valid in zip(proposals, valid, strict=True) if is_valid])
        return [
            self._rollout(size, self.known[key(proposal)], update)
            if is_valid and size is not None
            else Rollout(update, INVALID, valid=False)
            for proposal, size, is_valid in zip(proposals, sizes, valid, strict=True)
        ]

    def size(self, architecture: Architecture) -> int | None:
        """The number of parameters; None for what cannot be built."""
        try:
            return count_parameters(architecture, self.input_shape, self.least_inputs)
        except InvalidArchitectureError:
            return None

    def student(self, architecture: Architecture, repeat: int = 0) -> nn.Module:
        """A fresh student; its weights depend on architecture, seed and repetition alone."""
        drawn = generator_for(self.seed, 2, int(key(architecture)[:8], 16), repeat)
        seed, shape = drawn.initial_seed(), self.input_shape
        student = fresh(architecture, shape, seed, self.least_inputs, self.uniform_gammas)
        return student.to(next(self.guide.parameters()).device)

    def _train(self, proposals: Sequence[Architecture]) -> None:
        new = {key(each): each for each in proposals if key(each) not in self.known}
        students = [self.student(each) for each in new.values()]
        train(students, self.epochs, self.recipe, self.guide)
        self.known.update(zip(new, accuracies(students, self.held_out()), strict=True))

    def _rollout(self, parameters: int, accuracy: float, update: int) -> Rollout:
        whole = self.parameters or sum(each.numel() for each in self.guide.parameters())
        plain = reward(parameters, accuracy, whole, self.accuracy)
        limited = self.limit.apply(plain, parameters, accuracy, update)
        within = self.limit.holds(parameters, accuracy)
        return Rollout(update, limited, parameters, accuracy, within)


def key(architecture: Architecture) -> str:
    """A short name of an architecture."""
    return hashlib.sha256(repr(architecture).encode()).hexdigest()[:16]
