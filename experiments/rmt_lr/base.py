"""What the room's procedures share: work in parts that can be resumed, and fits of exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, checked
from repro.toolbox.method import Batch, Method
from repro.training.procedure import Procedure, refuse_methods


class Parts(Procedure):
    """Work in independent parts, one a training step, on the first training examples.

    Args:
        model: the network whose weights, as drawn, all parts start from.
        method: must be the plain one.
        examples: N, how many training examples count as all data.
        init: of its weights: ``torch`` | ``lecun``, N(0, 1/fan_in) and no biases.
        seed: of batches and start vectors.
    """

    METRICS: ClassVar = {"test/parts": "parts of the work that were done"}
    KEPT: ClassVar = ("found",)

    @checked
    def __init__(
        self,
        model: nn.Module,
        method: Method,
        examples: Count = 1280,
        init: Literal["torch", "lecun"] = "torch",
        seed: int = 0,
    ) -> None:
        super().__init__()
        refuse_methods(method, "rmt_lr trains ensembles by itself; it cannot use {method}.")
        self.model, self.examples, self.seed = model, examples, seed
        self.found: dict[str, Any] = {}
        if init == "lecun":
            lecun_init(model)

    def parts(self) -> Sequence[Any]:
        """All parts, in their order."""
        raise NotImplementedError

    def work(self, part: Any) -> Mapping[str, Any]:
        """Does a part; what it finds is kept."""
        raise NotImplementedError

    def summary(self) -> Mapping[str, float]:
        """Metrics from all that was found; what could not be measured is not a number."""
        raise NotImplementedError

    @property
    def data_set(self) -> Batch:
        """The N examples."""
        x, y = self.data.splits["train"][:2]
        return x[: self.examples].to(self.device), y[: self.examples].to(self.device)

    def batch(self, size: int, *key: int) -> Batch:
        """So many of the N without replacement, a function of the seed and the key."""
        x, y = self.data_set
        chosen = torch.randperm(len(y), generator=generator_for(self.seed, *key))[:size]
        return x[chosen], y[chosen]

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One part."""
        parts = self.parts()
        if self.global_step < len(parts):
            self.found = {**self.found, **self.work(parts[self.global_step])}
        self.tick()
        if self.global_step >= len(parts):
            self.trainer.should_stop = True
        return {"loss": torch.zeros(())}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to validate."""

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to test but what was found."""

    def on_test_epoch_end(self) -> None:
        """Logs the summary, without what is not a number."""
        found = {k: float(v) for k, v in self.summary().items() if math.isfinite(v)}
        self.log_dict({**found, "test/parts": float(len(self.parts()))})


def lecun_init(model: nn.Module) -> None:
    """Draws the weights of linear layers from N(0, 1/fan_in), with biases of zero."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The log-log slope; NaN with fewer than two points, or a y that is not positive."""
    if len(x) < 2 or not all(value > 0 and math.isfinite(value) for value in y):
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def grid(base: float, ratio: float, count: int) -> Tensor:
    """The geometric grid base · ratio^k, k < count."""
    return base * ratio ** torch.arange(count)


def largest_below(grid_K: Tensor, losses_K: Tensor, level: float) -> float:
    """The largest value of a grid whose loss is at most a level; NaN where none or the last is."""
    good = (losses_K <= level).nonzero().flatten().tolist()
    return float(grid_K[good[-1]]) if good and good[-1] < len(grid_K) - 1 else math.nan


def best_of(grid_K: Tensor, losses_K: Tensor) -> float:
    """The value of a grid with the least loss; NaN at either end, where better ones may lie."""
    k = int(losses_K.argmin())
    return float(grid_K[k]) if 0 < k < len(grid_K) - 1 else math.nan
