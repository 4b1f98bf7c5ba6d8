"""Going through a network unit by unit: what flows in, what should come out, what did."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.toolbox.reconstruction.units import Flow, Unit, capture, units_of, weight_layers


@dataclass
class Report:
    """What became of a unit.

    Attributes:
        unit: its name.
        error: relative squared error of its output, with compressed weights and inputs, on
            calibration data.
        undecided: share of weights that hardening still changed visibly.
        loss: the training loss at the last iteration.
    """

    unit: str
    error: float
    undecided: float = 0.0
    loss: float = 0.0


class UnitByUnit:
    """Compresses a model in place; iterating does it, one unit at a time.

    A unit is learned on its inputs in the compressed model, so that it can make up for what was
    done to the units before it, and on its outputs in the float model.

    Args:
        model: in evaluation mode, batch norms folded; its weights are replaced.
        x: (N, …) calibration inputs.
        unit: what is compressed at a time, ``layer`` or ``block``.
        skip: patterns of layer names to leave alone.
        batch: examples at a time where there is no learning.
        targets: labels (N,) or next tokens (N, T); None takes the float model's own predictions.
        seed: of everything random.
        reference: the float model; None copies `model`.
        x_reference: inputs of the float model, where `model` is itself a part of a network whose
            earlier parts are compressed already; None: the same.

    Raises:
        UserError: no layer is left.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        unit: Literal["layer", "block"] = "layer",
        skip: Sequence[str] = (),
        batch: int = 64,
        targets: Tensor | None = None,
        seed: int = 0,
        reference: nn.Module | None = None,
        x_reference: Tensor | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.x = x
        self.x_reference = x if x_reference is None else x_reference
        self.seed, self.batch = seed, batch
        self.reference = copy.deepcopy(model) if reference is None else reference
        self.reference.eval().requires_grad_(False)
        self.layers = weight_layers(self.reference, x[:1], skip)
        if not self.layers:
            raise UserError("There is no layer to quantise: method.skip leaves none.")
        self.units = units_of(self.reference, self.layers, unit)
        self.targets = self._predictions() if targets is None else targets

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.units)

    def __iter__(self) -> Iterator[Report]:
        """Compresses everything, and reports on each unit."""
        for number in range(self.steps):
            yield self.step(number)

    def step(self, number: int) -> Report:
        """Compresses one unit. A function of the seed, the number and the model as it is."""
        raise NotImplementedError

    def float_weight(self, layer: str) -> Tensor:
        """A layer's float weight, in single precision at least."""
        return precise(self.reference.get_parameter(weight_name(layer)))

    def flows(self, unit: Unit) -> tuple[Tensor, Flow]:
        """The unit's input in the compressed model, and input and output in the float one."""
        compressed = capture(self.model, unit.name, self.x, self.batch).x
        return compressed, self._float_flow(unit)

    def report(self, unit: Unit, undecided: float = 0.0, loss: float = 0.0) -> Report:
        """How far the unit's output now is from the float one."""
        out = capture(self.model, unit.name, self.x, self.batch, output=True).output
        target = self._float_flow(unit).output
        assert out is not None
        assert target is not None
        out, target = precise(out), precise(target)
        error = float((out - target).square().sum() / target.square().sum().clamp(min=1e-30))
        return Report(unit.name, error, undecided, loss)

    def task_loss(self, output: Tensor, part: slice) -> Tensor:
        """Cross-entropy of logits (B, …, classes), summed over examples, averaged over tokens."""
        target = self.targets[part]
        each = F.cross_entropy(precise(output).flatten(0, -2), target.flatten(), reduction="sum")
        return each * len(target) / target.numel()

    @torch.no_grad()
    def _predictions(self) -> Tensor:
        """The float model's own labels."""
        parts = self.x_reference.split(self.batch)
        return torch.cat([self.reference(part).argmax(-1) for part in parts])

    def _float_flow(self, unit: Unit) -> Flow:
        return capture(self.reference, unit.name, self.x_reference, self.batch, output=True)


def batches(size: int, batch: int, iterations: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of mini-batches without replacement, a new permutation every time all are used."""
    batch = min(batch, size)
    per_pass = size // batch
    for iteration in range(iterations):
        if iteration % per_pass == 0:
            order = torch.randperm(size, generator=generator)
        start = iteration % per_pass * batch
        yield order[start : start + batch]


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator for draws on a device, seeded by the given one."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def precise(x: Tensor) -> Tensor:
    """Half precision made single: a step of a grid must not be lost in rounding."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def weight_name(layer: str) -> str:
    """Name of a layer's weight, where the layer may be the model itself ("")."""
    return f"{layer}.weight" if layer else "weight"
