"""Rivals on one data set: one procedure with several settings, one of which is chosen later."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.methods.gbnn import Booster, GradientBoosting, layers, loss_for, stage

Try = dict[str, Any]
METHOD_KNOBS = ("per_step", "shrinkage", "subsample", "iterations", "alpha", "restarts", "prior")
JOINT_KNOBS = ("lr", "weight_decay", "alpha", "width")


@dataclass(frozen=True)
class Task:
    """What is to be predicted, and how well it is.

    Attributes:
        classes: number of classes; None for regression.
        targets: columns of a regression target.
    """

    classes: int | None
    targets: int = 1

    @classmethod
    def of(cls, y: Tensor) -> Task:
        """Reads the task from labels (int64) or targets (floating point)."""
        if y.is_floating_point():
            return cls(None, y[0].numel())
        return cls(int(y.max()) + 1)

    @property
    def measure(self) -> str:
        """``accuracy`` or ``rmse`` (in standard deviations of the target)."""
        return "rmse" if self.classes is None else "accuracy"

    @property
    def sign(self) -> int:
        """1 if more is better, −1 if less is."""
        return -1 if self.classes is None else 1

    @property
    def outputs(self) -> int:
        """Outputs of a joint network: one per class or target."""
        return self.targets if self.classes is None else self.classes

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss; one output for two classes is the logit of the second."""
        if self.classes is None:
            return 0.5 * (outputs - y.view_as(outputs)).square().sum(1).mean()
        if outputs.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs))
        return F.cross_entropy(outputs, y)

    def score(self, outputs: Tensor, y: Tensor) -> float:
        """The measure."""
        if self.classes is None:
            return float((outputs - y.view_as(outputs)).square().mean().sqrt())
        labels = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(1)
        return float((labels == y).double().mean())


class Rivals(nn.Module, ABC):
    """Several tries of a procedure on one data set, trained side by side."""

    size: int
    cuttable = True

    @abstractmethod
    def step(self, x: Tensor, y: Tensor, tick: int) -> Tensor:
        """Trains every try a little; returns the first one's training loss."""

    @abstractmethod
    def network(self, index: int, units: int | None = None) -> nn.Module:
        """The ordinary network of a try; only its first units, where boosting ordered them."""

    @abstractmethod
    def units(self, index: int) -> int:
        """Hidden units of a try."""

    @property
    def done(self) -> bool:
        """Whether further steps would change nothing."""
        return False

    def optimizer_states(self) -> list[Any]:
        """What a checkpoint needs beyond parameters and buffers."""
        return []

    def load_optimizer_states(self, states: list[Any]) -> None:
        """Restores `optimizer_states`."""


class Boosted(Rivals):
    """Tries of boosting.

    Args:
        settings: one for each try.
        task: what is predicted.
        inputs: features.

    Attributes:
        seconds: of every stage of the first try (claim C8).
    """

    seconds: Tensor

    def __init__(self, settings: Sequence[GradientBoosting], task: Task, inputs: int) -> None:
        super().__init__()
        kind = "regression" if task.classes is None else "classification"
        outputs = 1 if task.classes == 2 else task.outputs
        self.boosters = nn.ModuleList(
            Booster(each, loss_for(kind, task.classes, each.prior), inputs, outputs)
            for each in settings
        )
        self.size = len(settings)
        self.register_buffer("seconds", torch.zeros(settings[0].blocks, dtype=torch.float64))

    @override
    def step(self, x: Tensor, y: Tensor, tick: int) -> Tensor:
        """One stage of every try that is not done."""
        first: Any = self.boosters[0]
        for booster in self.boosters:
            assert isinstance(booster, Booster)
            if booster.done:
                continue
            started = time.perf_counter()
            stage(booster, x, y)
            if booster is first:
                t = int(booster.network.trained)
                self.seconds[t - 1] = time.perf_counter() - started
        return first.loss.value(first.loss.encode(y), first.scores_NK).mean()

    def network(self, index: int, units: int | None = None) -> nn.Module:
        """Merged blocks: the first ``units`` // J of them."""
        network: Any = self.boosters[index].network
        blocks = None if units is None else min(units // network.per_step, int(network.trained))
        return network.merge(blocks)

    def units(self, index: int) -> int:
        """Units trained so far."""
        network: Any = self.boosters[index].network
        return int(network.trained) * network.per_step

    @property
    def done(self) -> bool:
        """Whether every try has all its blocks."""
        return all(booster.done for booster in self.boosters)


class Joint(Rivals):
    """Tries of ordinary training, all weights at once.

    Args:
        models: one network for each try, in float64.
        optimizers: their optimizers.
        alphas: their weight decay, α ‖weights‖² / 2n as in scikit-learn.
        task: what is predicted.
        batch: examples of a mini-batch, None for all of them.
        seed: of the order of the examples.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        alphas: Sequence[float],
        task: Task,
        batch: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.optimizers, self.alphas = list(optimizers), list(alphas)
        self.task, self.batch, self.seed = task, batch, seed
        self.size = len(models)
        self.cuttable = all(layers(model) is not None for model in models)

    def step(self, x: Tensor, y: Tensor, tick: int) -> Tensor:
        """One epoch of every try; all see the same mini-batches."""
        x = x.double()
        order = torch.randperm(len(x), generator=generator_for(self.seed, tick)).to(x.device)
        losses: list[Tensor] = []
        for part in order.split(min(self.batch or len(x), len(x))):
            losses = [self._update(i, x[part], y[part]) for i in range(self.size)]
        return losses[0]

    def _update(self, index: int, x: Tensor, y: Tensor) -> Tensor:
        model, optimizer = self.models[index], self.optimizers[index]
        weights = [p for p in model.parameters() if p.dim() > 1]

        def closure() -> Any:
            optimizer.zero_grad()
            loss = self.task.loss(model(x), y)
            loss.backward()
            # The weight decay by hand: on networks this small autograd costs more than the sums.
            decay = self.alphas[index] / len(x)
            with torch.no_grad():
                for weight in weights:
                    assert weight.grad is not None
                    weight.grad.add_(weight, alpha=decay)
                    loss = loss + 0.5 * decay * weight.square().sum()
            return loss.detach()

        return torch.as_tensor(optimizer.step(closure))

    @override
    def network(self, index: int, units: int | None = None) -> nn.Module:
        """The network itself; its units stand in no order, so it is never cut here."""
        return self.models[index]

    def units(self, index: int) -> int:
        """Units of the first hidden layer."""
        hidden = next(part for part in self.models[index].modules() if isinstance(part, nn.Linear))
        return hidden.out_features

    def optimizer_states(self) -> list[Any]:
        """Moments, or the history of L-BFGS."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_optimizer_states(self, states: list[Any]) -> None:
        """Restores `optimizer_states`."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def expand(tries: Sequence[Mapping[str, Any]], known: Sequence[str]) -> list[Try]:
    """Spells out tries: a list of values stands for one try with each of them.

    Examples:
        >>> expand([{"lr": [1, 2], "alpha": 0}], ["lr", "alpha"])
        [{'lr': 1, 'alpha': 0}, {'lr': 2, 'alpha': 0}]

    Raises:
        UserError: a try names a setting that this procedure does not have.
    """
    spelt: list[Try] = []
    for each in tries or [{}]:
        unknown = [name for name in each if name not in known]
        if unknown:
            raise UserError(
                f"gbnn: a try sets '{unknown[0]}', but here tries set {', '.join(known)}."
            )
        values = [
            list(v) if isinstance(v, Sequence) and not isinstance(v, str) else [v]
            for v in each.values()
        ]
        spelt += [dict(zip(each, choice, strict=True)) for choice in itertools.product(*values)]
    return spelt


def boosted_rivals(
    settings: GradientBoosting, tries: Sequence[Mapping[str, Any]], task: Task, inputs: int
) -> Boosted:
    """Boosting with the settings of each try."""
    base = vars(settings)
    each = [GradientBoosting(**(base | one)) for one in expand(tries, METHOD_KNOBS)]
    return Boosted(each, task, inputs)


def joint_rivals(
    build: Callable[..., nn.Module],
    optimizer: Callable[..., torch.optim.Optimizer],
    tries: Sequence[Mapping[str, Any]],
    task: Task,
    inputs: int,
    alpha: float,
    batch: int | None,
    seed: int,
) -> Joint:
    """Joint training with the settings of each try; all of a width start from the same weights."""
    models, optimizers, alphas = [], [], []
    for one in expand(tries, JOINT_KNOBS):
        width = one.pop("width", None)
        depth = len(getattr(build, "keywords", {}).get("hidden", [None]))
        sizes = {} if width is None else {"hidden": [width] * depth}
        alphas.append(one.pop("alpha", alpha))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(input_shape=[inputs], classes=task.outputs, **sizes).double()
        models.append(model)
        optimizers.append(optimizer(model.parameters(), **one))
    return Joint(models, optimizers, alphas, task, batch, seed)
