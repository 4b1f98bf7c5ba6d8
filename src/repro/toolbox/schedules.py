"""Learning-rate schedules as functions of the fraction of training that is done.

Each takes an optimizer and the number of its steps, and returns a PyTorch scheduler that is
stepped after every update (those that are `watched`: after every validation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from repro.errors import UserError
from repro.knobs import Fraction, Inside, Natural, Share, checked


@checked
def constant(optimizer: Optimizer, steps: int, warmup: Fraction = 0.0) -> LambdaLR:
    """The configured rate, after a linear warm-up.

    Args:
        optimizer: whose rate is set.
        steps: updates in the whole training.
        warmup: fraction of all steps over which the rate rises linearly from 0.
    """
    return _by_progress(optimizer, steps, warmup, lambda _done: 1.0)


@checked
def step(
    optimizer: Optimizer,
    steps: int,
    milestones: Sequence[Inside] = (0.6,),
    gamma: float = 0.1,
    warmup: Fraction = 0.0,
) -> LambdaLR:
    """Multiplies the rate by ``gamma`` at each milestone.

    Args:
        optimizer: whose rate is set.
        steps: updates in the whole training.
        milestones: fractions of training in (0, 1), rising.
        gamma: factor at a milestone.
        warmup: fraction of training over which the rate rises linearly from 0.

    Raises:
        UserError: milestones outside (0, 1) or not rising.
    """
    if list(milestones) != sorted(milestones):
        raise UserError(f"schedule.milestones rise, but these do not: {milestones}.")
    return _by_progress(
        optimizer, steps, warmup, lambda done: gamma ** sum(done >= m for m in milestones)
    )


@checked
def cosine(optimizer: Optimizer, steps: int, warmup: Fraction = 0.0) -> LambdaLR:
    """Half a cosine from the configured rate to zero, after a linear warm-up.

    Args:
        optimizer: whose rate is set.
        steps: updates in the whole training.
        warmup: see `constant`.
    """

    def factor(done: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * max(0.0, done - warmup) / (1 - warmup)))

    return _by_progress(optimizer, steps, warmup, factor)


@checked
def linear_decay(
    optimizer: Optimizer,
    steps: int,
    start: Fraction = 0.7,
    warmup: Fraction = 0.0,
    stop: Share = 1.0,
    low: Fraction = 0.0,
) -> LambdaLR:
    """The configured rate, and from a fraction ``start`` of training on a line down to zero.

    Args:
        optimizer: whose rate is set.
        steps: updates in the whole training.
        start: fraction of training after which the rate falls, in [0, 1).
        warmup: see `constant`.
        stop: fraction of training, above ``start``, after which it falls no more.
        low: factor on the rate from then on.

    Raises:
        UserError: ``stop`` is not above ``start``.
    """
    if stop <= start:
        raise UserError(f"schedule.stop={stop} has to be above schedule.start={start}.")

    def factor(done: float) -> float:
        return low + (1 - low) * min(1.0, max(0.0, (stop - done) / (stop - start)))

    return _by_progress(optimizer, steps, warmup, factor)


@checked
def plateau(
    optimizer: Optimizer,
    steps: int,  # noqa: ARG001 - every schedule is told
    gamma: Inside = 0.25,
    patience: Natural = 0,
    watch: str = "loss",
    **knobs: Any,
) -> ReduceLROnPlateau:
    """Multiplies the rate by ``gamma`` after ``patience`` validations without a better measure.

    Args:
        optimizer: whose rate is set.
        steps: not used.
        gamma: factor of a cut.
        patience: validations that are forgiven.
        watch: the validation measure that drives it (see `watched`).
        knobs: of `torch.optim.lr_scheduler.ReduceLROnPlateau`.
    """
    scheduler = ReduceLROnPlateau(optimizer, factor=gamma, patience=patience, **knobs)
    scheduler.watch = watch  # type: ignore[attr-defined]
    return scheduler


def watched(scheduler: Any) -> str | None:
    """The validation measure that drives a scheduler, or None if it counts updates.

    Schedulers with an attribute ``watch`` are stepped after each validation, with that measure.
    """
    return getattr(scheduler, "watch", None)


def _by_progress(
    optimizer: Optimizer, steps: int, warmup: float, factor: Callable[[float], float]
) -> LambdaLR:
    def scale(count: int) -> float:
        done = count / max(1, steps)
        rise = min(1.0, (count + 1) / (warmup * steps)) if warmup > 0 else 1.0
        return rise * factor(done)

    return LambdaLR(optimizer, scale)
