"""Annealed Gaussian gradient noise (Neelakantan et al., arXiv 1511.06807), for any optimizer.

After clipping, and before the optimizer sees it, every coordinate of the gradient gets independent
noise (Section 3 of the paper)::

    g~_t = g_t + n_t,    n_t ~ N(0, sigma_t^2 I),    sigma_t^2 = eta / (1 + t)^gamma

sigma^2 is the variance; t counts optimizer steps from 0. Noise lets plain SGD leave even an
all-zero start, from which it would never move:

>>> import torch
>>> from repro.methods.gradient_noise import GradientNoise
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(
...     torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
... )
>>> for parameter in model.parameters():
...     _ = torch.nn.init.zeros_(parameter)
>>> x = torch.randn(256, 4)
>>> y = (x[:, 0] * x[:, 1] > 0).long()
>>> method = GradientNoise(eta=0.1)
>>> method.attach(model)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
>>> for step in range(500):
...     optimizer.zero_grad()
...     torch.nn.functional.cross_entropy(model(x), y).backward()
...     method.clip(model.parameters(), max_norm=10.0)
...     method.before_step(model)  # adds the noise
...     optimizer.step()
>>> (model(x).argmax(1) == y).float().mean().item() > 0.9
True

`escape_time` says beforehand which eta can work within a number of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.internals import foreach_add_, foreach_mul_
from repro.knobs import NonNegative, checked
from repro.toolbox.method import Method


def noise_variance(step: int, eta: float, gamma: float = 0.55) -> float:
    """The paper's annealed variance, ``eta / (1 + step)^gamma``.

    Args:
        step: optimizer steps that are done, from 0.
        eta: variance at step 0; the paper chooses from 0.01, 0.3 and 1.
        gamma: decay; 0 is a constant variance, the paper's is 0.55.
    """
    return float(eta * (1 + step) ** -gamma)


def walk_variance(steps: int, lr: float, eta: float, gamma: float = 0.55) -> float:
    """Variance of a weight that SGD moves by noise alone: ``lr^2 * sum of sigma_i^2``, i < steps.

    Args:
        steps: updates.
        lr: learning rate of plain SGD.
        eta: see `noise_variance`; likewise `gamma`.
        gamma: decay of the variance.
    """
    return lr**2 * sum(noise_variance(i, eta, gamma) for i in range(steps))


def escape_time(
    fan_in: int, lr: float, eta: float, gamma: float = 0.55, init_std: float = 0.0
) -> float:
    """Steps until noise alone has brought a ReLU layer to He's variance, ``2 / fan_in``.

    From then on the layer passes signals on at their own size, so gradients take over. The
    integral of `noise_variance` instead of the sum, for plain SGD (derived here)::

        t* = [(1 - gamma) (2 / fan_in - init_std^2) / (lr^2 eta)]^(1 / (1 - gamma))

    Args:
        fan_in: inputs of the layer.
        lr: learning rate of plain SGD.
        eta: variance at step 0, above 0.
        gamma: decay, in [0, 1).
        init_std: standard deviation of the initial weights.

    Returns:
        The number of steps; 0 where the initial weights are large enough.
    """
    missing = max(0.0, 2 / fan_in - init_std**2)
    return float(((1 - gamma) * missing / (lr**2 * eta)) ** (1 / (1 - gamma)))


def add_noise_(
    tensors: Sequence[Tensor],
    std: float,
    generators: dict[str, torch.Generator],
    scale_R: Tensor | None = None,
) -> None:
    """Adds independent N(0, std^2) noise to every entry of every tensor, in place.

    One draw for all tensors of a kind and one fused addition: many small tensors cost little more
    than a large one.

    Args:
        tensors: of any shapes.
        std: standard deviation, at least 0.
        generators: one for each device that the tensors are on.
        scale_R: (R,) factors of the noise along the first dimension of every tensor, or None.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for (device, dtype), group in kinds.items():
        sizes = [tensor.numel() for tensor in group]
        flat = torch.empty(sum(sizes), device=device, dtype=dtype)
        flat.normal_(generator=generators[str(device)])
        noise = [part.view_as(t) for part, t in zip(flat.split(sizes), group, strict=True)]
        if scale_R is not None:
            for part in noise:
                part.mul_(scale_R.to(part).view(-1, *[1] * (part.dim() - 1)))
        foreach_add_(group, noise, alpha=std)


def clip_members_(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Clips the gradient norm of R networks that are stacked along the first dimension, each alone.

    Args:
        gradients: of shapes (R, ...), one per parameter.
        max_norm: largest norm over all parameters of one network.

    Returns:
        (R,) the norms before clipping.
    """
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
    norm_R = torch.stack(squares).sum(0).sqrt()
    scale_R = (max_norm / (norm_R + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale_R.view(-1, *[1] * (gradient.dim() - 1)))
    return norm_R


class GradientNoise(Method):
    """Adds annealed Gaussian noise to clipped gradients, then lets any optimizer use them.

    A model with an attribute ``members`` is taken for that many independent networks whose
    parameters are stacked along the first dimension: each is then clipped by its own norm. Data
    parallel processes draw the same noise, after the gradients were averaged, so the variance does
    not shrink with their number. The state holds the step and the generators, so a resumed run
    neither restarts at full strength nor repeats a draw.

    Args:
        eta: variance of the noise at step 0, at least 0; the paper's grid is 0.01, 0.3, 1.0.
            With 0 this is plain training, bit for bit, and no random number is drawn.
        gamma: decay of the variance, at least 0; the paper's is 0.55.
        schedule: ``poly`` (the paper), ``constant`` (gamma is ignored), ``error_scaled`` (poly
            times the latest `observe_error`, as in the authors' Neural GPU), ``none``.
        order: ``after_clip`` (the paper) or ``before_clip`` (a control: clipping then takes most
            of the noise away).
        seed: of the noise; independent of every other random number.

    Raises:
        UserError: a knob is out of range.
    """

    METRICS: ClassVar = {"noise/std": "standard deviation of the next step's noise"}

    @checked
    def __init__(
        self,
        eta: NonNegative = 0.01,
        gamma: NonNegative = 0.55,
        schedule: Literal["poly", "constant", "error_scaled", "none"] = "poly",
        order: Literal["after_clip", "before_clip"] = "after_clip",
        seed: int = 0,
    ) -> None:
        self.eta = eta
        self.gamma = gamma
        self.schedule = schedule
        self.order = order
        self.seed = seed
        self.members: int | None = None
        self.step = 0
        self.error: float | Tensor = 1.0
        self.generators: dict[str, torch.Generator] = {}

    @property
    def std(self) -> float:
        """Standard deviation of the noise of the step that is due, before any error scaling."""
        if self.schedule == "none":
            return 0.0
        gamma = 0.0 if self.schedule == "constant" else self.gamma
        return float(noise_variance(self.step, self.eta, gamma) ** 0.5)

    def attach(self, model: nn.Module) -> None:
        """Finds out whether the model is one network or many stacked ones.

        Raises:
            UserError: an embedding has sparse gradients, which noise would make dense.
        """
        if any(getattr(module, "sparse", False) for module in model.modules()):
            raise UserError(
                "gradient_noise adds noise to every coordinate, so it cannot train embeddings with"
                " sparse gradients: build them with sparse=False."
            )
        self.members = getattr(model, "members", None)

    def observe_error(self, error: float | Tensor) -> None:
        """Told the present error rate, a number or (R,) for stacked networks, in [0, 1]."""
        self.error = error.detach() if isinstance(error, Tensor) else error

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
        """Clips the gradient norm, of each network by itself; see ``order``."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.order == "before_clip":
            self._add_noise(gradients)
        if max_norm is not None and gradients:
            if self.members is None:
                norm = torch.nn.utils.get_total_norm(gradients)
                scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
                foreach_mul_(gradients, scale)
            else:
                clip_members_(gradients, max_norm)

    def before_step(self, model: nn.Module) -> None:
        """Adds the noise, and counts the step."""
        if self.order == "after_clip":
            self._add_noise([p.grad for p in model.parameters() if p.grad is not None])
        self.step += 1

    def metrics(self) -> dict[str, float]:
        """The standard deviation of the next step's noise."""
        return {"noise/std": self.std}

    def state_dict(self) -> dict[str, Any]:
        """The step, the latest error and the generators."""
        states = {device: each.get_state() for device, each in self.generators.items()}
        return {"step": self.step, "error": self.error, "generators": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.step, self.error = state["step"], state["error"]
        for device, stored in state["generators"].items():
            self._generator(device).set_state(stored.cpu())

    def _add_noise(self, gradients: Sequence[Tensor]) -> None:
        std = self.std
        if std == 0 or not gradients:
            return
        scale_R = None
        if self.schedule == "error_scaled":
            if isinstance(self.error, Tensor):
                scale_R = self.error.sqrt()
            else:
                std *= self.error**0.5
        for device in {str(gradient.device) for gradient in gradients}:
            self._generator(device)
        add_noise_(gradients, std, self.generators, scale_R)

    def _generator(self, device: str) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]
