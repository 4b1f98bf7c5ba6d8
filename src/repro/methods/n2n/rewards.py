"""What a student is worth: small, and as accurate as its teacher; and limits on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from repro.knobs import Count, Probability, checked

INVALID = -1.0  # the reward of what is not smaller, cannot be built, or violates a hard limit


def compression_reward(compression: float) -> float:
    """``R_c = C (2 - C)``, with C the share of the teacher's parameters that is saved.

    It rises steeply at first and hardly behind ten times fewer parameters:

    >>> [round(compression_reward(c), 4) for c in (0, 0.5, 0.9, 0.95)]
    [0, 0.75, 0.99, 0.9975]
    """
    return compression * (2 - compression)


def reward(
    parameters: int, accuracy: float, teacher_parameters: int, teacher_accuracy: float
) -> float:
    """``R = R_c R_a``: the reward of the size times accuracy relative to the teacher's."""
    compression = 1 - parameters / teacher_parameters
    return compression_reward(compression) * accuracy / teacher_accuracy


@checked
@dataclass(frozen=True)
class Limit:
    """A largest size, a least accuracy, or both.

    Args:
        parameters: at most so many; None for any number.
        accuracy: at least this; None for any.
        enforce: ``no``: it is only observed. ``hard``: what violates it is worth -1. ``soft``: the
            reward turns into that little by little, in `updates` updates of the policy.
        updates: see ``soft``.
    """

    parameters: Count | None = None
    accuracy: Probability | None = None
    enforce: Literal["no", "hard", "soft"] = "no"
    updates: Count = 15

    def holds(self, parameters: int, accuracy: float) -> bool:
        """Whether a student is within it."""
        small = self.parameters is None or parameters <= self.parameters
        return small and (self.accuracy is None or accuracy >= self.accuracy)

    def apply(self, reward: float, parameters: int, accuracy: float, update: int) -> float:
        """The reward that counts: a violation's is ``(eps - 1) + eps R`` where it is soft.

        eps falls from 1 at update 0 to 0, as ``(1 - update / updates)^4``.
        """
        if self.enforce == "no" or self.holds(parameters, accuracy):
            return reward
        if self.enforce == "hard":
            return INVALID
        eps = max(0.0, 1 - update / self.updates) ** 4
        return (eps - 1) + eps * reward
