"""Steps of fixed length in a norm that suits the layer, and shorter ones for noisier layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from repro.errors import UserError
from repro.internals import foreach_lerp_
from repro.knobs import Fraction, Natural, NonNegative, Positive, checked
from repro.methods.lanton.layers import views
from repro.toolbox.lmo import RMS, NormBall, Sign, Spectral, iid_dual

Noise = Literal["off", "previous", "independent", "shape"]
Control = Literal["none", "mean_matched", "shuffled"]


def noise_rates(h_L: Tensor, c: Tensor | float, power: float) -> Tensor:
    """Each layer's share of the rate, ``((c + min H) / (c + H))^power``, in (0, 1].

    The paper's ``sqrt(alpha^l / max_j alpha^j)`` with ``alpha^l = alpha / sqrt(alpha^2 + H^l)`` and
    ``c = alpha^2`` is this with a power of 1/4.

    Args:
        h_L: (L,) squared noise of the layers of a kind, at least 0.
        c: at least 0; where it is large against the noise, all rates are 1.
        power: 1/4, or 1/2 without that square root.
    """
    total_L = c + h_L
    # 0 / 0 is the rate of a layer without noise.
    ratio_L = torch.where(total_L > 0, total_L.min() / total_L, 1.0)
    return ratio_L**power


@dataclass
class Layer:
    """One matrix or vector: what it is, where it lies and how far it may go."""

    parameter: Tensor
    index: int  # among the layers of the parameter
    group: dict[str, Any]

    def of(self, tensor: Tensor) -> Tensor:
        """This layer's part of a tensor shaped like the parameter."""
        return views(tensor, self.group)[self.index]

    @property
    def length(self) -> float:
        """The length of a step: the rate times what the shape of the step is scaled by."""
        wide = self.group["wide_scale"] if self.is_wide else 1.0
        return float(self.group["lr"] * self.group["scale"] * wide)

    @property
    def is_wide(self) -> bool:
        """Whether it is a matrix of more outputs than inputs."""
        shape = self.of(self.parameter).shape
        return len(shape) == 2 and shape[0] > shape[1]


class Lanton(Optimizer):
    """LANTON, or with ``noise="off"`` the optimizer with linear minimisation oracles below it.

    The state of a parameter: ``momentum``; with noise also ``reference`` (the gradient that the
    next one is compared with), ``noise`` (H of its layers) and ``c``.

    Args:
        params: parameter groups, see `repro.methods.lanton.layer_groups`. A group may have its own
            ``lr``, ``scale``, ``wide_scale`` and ``weight_decay``; rates are compared between all
            layers of a ``role``.
        lr: eta, length of a step in the norm of its ball, before scales.
        balls: by role. None: as published: spectral (from RMS to RMS) for ``hidden``, sign for
            ``embedding`` and ``positions``, RMS for ``vector``.
        beta1: of the momentum, which starts at zero.
        nesterov: move along ``(1 - beta1) G + beta1 B`` (Muon, D-Muon).
        weight_decay: decoupled; multiplied by lr alone. 1 is Scion's constrained form.
        noise: ``off``: none is measured, all rates are 1; ``previous``: G_ref is the last step's
            gradient (option I); ``independent``: that of another batch at the same weights, told
            by `keep_reference` before each step (option II); ``shape``: H is what the shape alone
            gives (a control).
        beta2: of H, which starts with the first difference.
        c: see `noise_rates`; with ``c_unit="median"`` in units of the median of H over the layers
            of a role, which is followed for `settle` steps and then kept.
        c_unit: ``median`` or ``absolute`` (alpha^2: on the scale of squared dual norms, which
            differs between roles by orders of magnitude).
        settle: steps after which c stays what it is.
        power: see `noise_rates`.
        control: ``mean_matched``: all layers of a role get its mean rate; ``shuffled``: the rates
            are dealt to the wrong layers, by one permutation of each role.
        seed: of the permutations.

    Raises:
        UserError: a knob is out of range, a role has no ball, or `step` misses a reference.
    """

    @checked
    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: NonNegative = 0.02,
        balls: Mapping[str, NormBall] | None = None,
        beta1: Fraction = 0.95,
        nesterov: bool = False,
        weight_decay: NonNegative = 0.0,
        noise: Noise = "previous",
        beta2: Fraction = 0.9,
        c: NonNegative = 0.1,
        c_unit: Literal["median", "absolute"] = "median",
        settle: Natural = 30,
        power: Positive = 0.25,
        control: Control = "none",
        seed: int = 0,
    ) -> None:
        published = {
            "hidden": Spectral(),
            "vector": RMS(),
            "embedding": Sign(),
            "positions": Sign(),
        }
        self.balls = published if balls is None else dict(balls)
        self.beta1, self.beta2 = beta1, beta2
        self.nesterov = nesterov
        self.noise = noise
        self.c, self.c_unit, self.settle = c, c_unit, settle
        self.power = power
        self.control = control
        self.seed = seed
        self.rates: dict[str, Tensor] = {}  # of the last step, by role
        defaults = {"lr": lr, "weight_decay": weight_decay, "scale": 1.0, "wide_scale": 1.0}
        super().__init__(params, defaults | {"steps": 0, "role": "hidden"})
        for group in self.param_groups:
            if group["role"] not in self.balls:
                raise UserError(f"lanton: there is no norm ball for layers '{group['role']}'.")

    @torch.no_grad()
    def keep_reference(self) -> None:
        """Keeps the present gradients as those that the next step's are compared with."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "reference" in state:
                    state["reference"].copy_(parameter.grad)
                else:
                    state["reference"] = parameter.grad.clone()

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._average(group)
            group["steps"] += 1
        for role, every in self.layers().items():
            layers = [layer for layer in every if layer.parameter.grad is not None]
            if not layers:
                continue
            self.rates[role] = rates_L = self._controlled(self._rates(role, layers))
            for chosen in _same_shape(layers):
                self._move(role, [layers[i] for i in chosen], rates_L[chosen])
        if self.noise == "previous":
            self.keep_reference()
        return loss

    def layers(self) -> dict[str, list[Layer]]:
        """All layers by role, in the order of the groups."""
        found: dict[str, list[Layer]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                parts = range(len(views(parameter, group)))
                found[group["role"]] += [Layer(parameter, part, group) for part in parts]
        return found

    def measured_noise(self, role: str) -> Tensor | None:
        """(L,) H of a role's layers; None before there is one."""
        layers = self.layers().get(role, [])
        if not layers or any("noise" not in self.state[layer.parameter] for layer in layers):
            return None
        return _kept_noise(self.state, layers)

    def flops(self) -> tuple[int, int]:
        """Operations in the matrix products of a step: for the directions, for the noise."""
        moves, noise = 0, 0
        for role, layers in self.layers().items():
            for layer in layers:
                costs = self.balls[role].flops(layer.of(layer.parameter).shape)
                moves += costs[0]
                noise += costs[1] if self.noise in ("previous", "independent") else 0
        return moves, noise

    # -- A step -----------------------------------------------------------------------------------

    def _average(self, group: dict[str, Any]) -> None:
        """Adds the gradients to the momentum."""
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in moved:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        if moved:
            momenta = [self.state[parameter]["momentum"] for parameter in moved]
            foreach_lerp_(momenta, [parameter.grad for parameter in moved], 1 - self.beta1)

    def _rates(self, role: str, layers: list[Layer]) -> Tensor:
        ones_L = torch.ones(len(layers), device=layers[0].parameter.device)
        if self.noise == "off":
            return ones_L
        if self.noise == "shape":
            shapes = [tuple(layer.of(layer.parameter).shape) for layer in layers]
            constant = {shape: iid_dual(self.balls[role], shape) ** 2 for shape in set(shapes)}
            return noise_rates(ones_L.new_tensor([constant[s] for s in shapes]), 0.0, self.power)
        h_L = self._noise(role, layers)
        return ones_L if h_L is None else noise_rates(h_L, self._c(h_L, layers), self.power)

    def _noise(self, role: str, layers: list[Layer]) -> Tensor | None:
        """H (L,) with this step's difference; None where there is none yet.

        Raises:
            UserError: the reference of an independent batch is missing.
        """
        if any("reference" not in self.state[layer.parameter] for layer in layers):
            if self.noise == "independent":
                raise UserError(
                    "lanton: noise=independent compares with another batch's gradient: call"
                    " keep_reference() after that batch's backward pass, before step()."
                )
            return None
        h_L = torch.zeros(len(layers), device=layers[0].parameter.device)
        for chosen in _same_shape(layers):
            differences_K = torch.stack([self._difference(layers[i]) for i in chosen])
            h_L[chosen] = self.balls[role].dual(differences_K).square().to(h_L)
        if all("noise" in self.state[layer.parameter] for layer in layers):
            h_L = _kept_noise(self.state, layers).lerp(h_L, 1 - self.beta2)
        for layer, h in zip(layers, h_L, strict=True):
            state = self.state[layer.parameter]
            if "noise" not in state:
                state["noise"] = h_L.new_zeros(len(views(layer.parameter, layer.group)))
            state["noise"][layer.index] = h
        return h_L

    def _difference(self, layer: Layer) -> Tensor:
        gradient = layer.parameter.grad
        assert gradient is not None
        return layer.of(gradient) - layer.of(self.state[layer.parameter]["reference"])

    def _c(self, h_L: Tensor, layers: list[Layer]) -> Tensor | float:
        if self.c_unit == "absolute":
            return self.c
        state = self.state[layers[0].parameter]
        if "c" not in state or layers[0].group["steps"] <= self.settle:
            state["c"] = self.c * h_L.median()
        kept: Tensor = state["c"]
        return kept

    def _controlled(self, rates_L: Tensor) -> Tensor:
        if self.control == "mean_matched":
            return rates_L.mean().expand_as(rates_L)
        if self.control == "shuffled":
            generator = torch.Generator().manual_seed(self.seed)
            order_L = torch.randperm(len(rates_L), generator=generator)
            return rates_L[order_L.to(rates_L.device)]
        return rates_L

    def _move(self, role: str, layers: list[Layer], rates_K: Tensor) -> None:
        """Moves layers of one shape."""
        along_K = torch.stack([self._along(layer) for layer in layers])
        lengths_K = rates_K * rates_K.new_tensor([layer.length for layer in layers])
        moves_K = self.balls[role].direction(along_K)
        moves_K = moves_K * lengths_K.to(moves_K.dtype).view(-1, *[1] * (along_K.dim() - 1))
        for layer, move in zip(layers, moves_K, strict=True):
            weights = layer.of(layer.parameter)
            if layer.group["weight_decay"]:
                weights.mul_(1 - layer.group["lr"] * layer.group["weight_decay"])
            weights.sub_(move)

    def _along(self, layer: Layer) -> Tensor:
        momentum = layer.of(self.state[layer.parameter]["momentum"])
        if not self.nesterov:
            return momentum
        assert layer.parameter.grad is not None
        return layer.of(layer.parameter.grad).lerp(momentum, self.beta1)


def _kept_noise(state: Mapping[Tensor, Any], layers: list[Layer]) -> Tensor:
    return torch.stack([state[layer.parameter]["noise"][layer.index] for layer in layers])


def _same_shape(layers: list[Layer]) -> list[list[int]]:
    """Indices of layers that can be stacked."""
    found: dict[Any, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        weights = layer.of(layer.parameter)
        found[weights.shape, weights.dtype, weights.device].append(index)
    return list(found.values())
