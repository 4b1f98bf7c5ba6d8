"""AccelAT: the learning rate falls whenever accuracy stops rising (Nikfam et al., 2022).

"AccelAT: A Framework for Accelerating the Adversarial Training of Deep Neural Networks through
Accuracy Gradient", arXiv 2210.06888. The rule, `AccuracySlopeLR`, is a PyTorch scheduler driven by
one number an epoch, whatever that number is:

>>> import torch
>>> from repro.methods.accelat import AccuracySlopeLR
>>> model = torch.nn.Linear(2, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
>>> scheduler = AccuracySlopeLR(optimizer)
>>> accuracies = [0.10, 0.20, 0.28, 0.34, 0.38, 0.40, 0.41, 0.412] + 11 * [0.413]
>>> rates = []
>>> for accuracy in accuracies:                 # train an epoch, then measure on held-out data
...     rates.append(optimizer.param_groups[0]["lr"])
...     scheduler.step(accuracy)
>>> [round(rate, 6) for rate in rates[9:18]]    # cuts after epochs 10 and 15
[0.001, 0.001, 0.0008, 0.0008, 0.0008, 0.0008, 0.0008, 0.00064, 0.00064]

The shapes that the paper compares it with are functions of the epoch; each stands in units of the
optimizer's own learning rate, which the paper sets to 1e-4:

>>> from repro.methods.accelat import one_cycle
>>> [round(one_cycle(epoch, 50), 3) for epoch in (0, 20, 40, 41, 49)]
[1.0, 10.0, 1.0, 0.901, 0.109]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from repro.errors import UserError
from repro.knobs import Count, Inside, Known, Natural, NonNegative, Share, checked


class AccuracySlopeLR(LRScheduler):
    """Multiplies the learning rate by `factor` where the moving mean of a metric rises too slowly.

    After epoch e (from 0), with ``m_e`` the mean of the last `window` values (the constants and the
    order of the steps are those of the published code):

    1. ``q <- q + 1``.
    2. If ``e > window`` and ``q > quiet`` and ``m_e - m_{e-1} < threshold``: cut, and ``q <- 1``.
    3. ``lr <- max(lr, floor)``.

    q starts at `quiet`, so that the first cut, after epoch ``window + 1``, waits for nothing else.
    For full windows ``m_e - m_{e-1} = (a_e - a_{e-w}) / w``: the defaults ask for a gain of 2.5
    percentage points in five epochs. A falling metric cuts too; the rate never rises.

    The published code takes the mean of only the last two and of only the last value after epochs
    2 and 3, a slip of its slice that no decision ever sees. Here a window that is not yet full is
    the mean of what there is.

    Args:
        optimizer: all of its parameter groups are cut alike.
        factor: of a cut, in (0, 1).
        floor: least learning rate.
        window: w, epochs in the moving mean.
        quiet: epochs after a cut in which there is no other.
        threshold: least growth of the mean per epoch. The metric is a fraction, not in percent.
        watch: which validation measure drives it, for loops that measure several.

    Raises:
        UserError: a knob is out of range.
    """

    @checked
    def __init__(
        self,
        optimizer: Optimizer,
        factor: Inside = 0.8,
        floor: NonNegative = 1e-6,
        window: Count = 5,
        quiet: Natural = 5,
        threshold: float = 0.005,
        watch: str = "accuracy",
    ) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.floor = floor
        self.window = window
        self.quiet = quiet
        self.threshold = threshold
        self.watch = watch
        self.metrics: list[float] = []
        self.waited = quiet
        self.cuts: list[int] = []
        self._last_lr = [group["lr"] for group in optimizer.param_groups]

    def mean(self, epoch: int) -> float:
        """The moving mean after an epoch."""
        values = self.metrics[max(0, epoch + 1 - self.window) : epoch + 1]
        return math.fsum(values) / len(values)

    def step(self, metric: float | None = None) -> None:
        """Takes the metric of the epoch that just ended and sets the rate of the next one.

        Raises:
            UserError: there is no metric.
        """
        if metric is None:
            raise UserError("AccuracySlopeLR.step takes the epoch's metric, e.g. step(accuracy).")
        self.metrics.append(float(metric))
        self.waited += 1
        epoch = len(self.metrics) - 1
        due = epoch > self.window and self.waited > self.quiet
        if due and self.mean(epoch) - self.mean(epoch - 1) < self.threshold:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.factor
            self.waited = 1
            self.cuts.append(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = max(group["lr"], self.floor)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What happened so far; the rates themselves are the optimizer's."""
        return {"metrics": self.metrics, "waited": self.waited, "cuts": self.cuts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.metrics = list(state["metrics"])
        self.waited = state["waited"]
        self.cuts = list(state["cuts"])
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


@checked
def accuracy_slope(
    optimizer: Optimizer,
    steps: int,  # noqa: ARG001 - every schedule is told
    floor_ratio: Share = 1e-3,
    **rule: Any,
) -> AccuracySlopeLR:
    """Builds `AccuracySlopeLR` for a loop that also says how many updates there will be.

    Args:
        optimizer: whose rate is set.
        steps: not used; other schedules need it.
        floor_ratio: least learning rate as a fraction of the first (the paper: 1e-6 / 1e-3).
        rule: see `AccuracySlopeLR`.
    """
    first = max(group["lr"] for group in optimizer.param_groups)
    return AccuracySlopeLR(optimizer, floor=floor_ratio * first, **rule)


# -- The shapes of the paper's comparison: (epoch from 0, number of epochs) -> factor of the rate --


def piecewise(epoch: int, epochs: int, drop: float = 0.1) -> float:
    """1, then `drop` after a third of the epochs, then its square after two (shape 1)."""
    return drop ** ((epoch > epochs / 3) + (epoch > 2 * epochs / 3))


def sawtooth(
    epoch: int,
    epochs: int,
    teeth: int = 5,
    power: float = 1.0,
    end: float = 0.1,
    cyclic: bool = True,
) -> float:
    """Polynomial decay from 1 to `end` that starts again with shrinking peaks (shape 2, "linear").

    The shrinking is the published code's: its cycles are not measured from their own start but from
    0. Without `cyclic` there is one decay over the first ``epochs / teeth`` epochs.
    """
    period = epochs / teeth
    if cyclic:
        length = period * math.ceil((epoch + 1) / period)
        done = (epoch + 1) / length
    else:
        done = min(epoch, period) / period
    return (1 - end) * (1 - done) ** power + end


def range_test(epoch: int, epochs: int, start: float = 1e-4, decades: float = 10.0) -> float:
    """Rises exponentially from `start` over so many decades (shape 3, "exponential decay").

    In the paper's unit of 1e-4: from 1e-8 to nearly 100. Whatever the name in the paper's code,
    this is a learning-rate range test.
    """
    return start * 10 ** (decades * epoch / epochs)


def one_cycle(
    epoch: int,
    epochs: int,
    peak: float = 10.0,
    end: float = 0.01,
    top: float = 0.4,
    back: float = 0.8,
) -> float:
    """Up to `peak` at the fraction `top` of training, to 1 at `back`, to `end` at 1 (shape 4)."""
    up, down = top * epochs, back * epochs
    if epoch <= up:
        return 1 + (peak - 1) * epoch / up
    if epoch <= down:
        return peak + (1 - peak) * (epoch - up) / (down - up)
    return 1 + (end - 1) * (epoch - down) / (epochs - down)


SHAPES: dict[str, Callable[..., float]] = {
    "piecewise": piecewise,
    "sawtooth": sawtooth,
    "range_test": range_test,
    "one_cycle": one_cycle,
}


@checked
def shaped(
    optimizer: Optimizer,
    steps: int,
    shape: Annotated[str, Known(tuple(SHAPES))],
    epochs: int,
    **knobs: Any,
) -> LambdaLR:
    """Sets the rate, once an epoch, to a shape's factor of the optimizer's own.

    Args:
        optimizer: whose rate is set.
        steps: updates in the whole training.
        shape: one of `SHAPES`.
        epochs: epochs in the whole training.
        **knobs: of the shape, see `SHAPES`.

    Raises:
        UserError: there is no such shape, or it refuses a knob.
    """
    factor = functools.partial(SHAPES[shape], epochs=epochs, **knobs)
    try:
        factor(0)
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"schedule={shape}: {error}.") from error
    return LambdaLR(optimizer, lambda step: factor(min(step * epochs // max(1, steps), epochs - 1)))
