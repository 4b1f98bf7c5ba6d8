"""Adversarial examples: small changes of an input that a classifier gets wrong.

An attack is called with anything that maps inputs to logits, and keeps to a ball around the input:

>>> import torch
>>> from repro.toolbox.attacks import FGSM, PGD
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Linear(20, 3)
>>> x = torch.rand(8, 20)
>>> y = model(x).argmax(1)                      # everything is right before the attack
>>> adversarial = PGD(eps=0.3, steps=10, rel_step=0.25)(model, x, y)
>>> bool((model(adversarial).argmax(1) != y).float().mean() > 0.5)
True
>>> bool((adversarial - x).abs().max() <= 0.3 + 1e-6)
True

Attacks work inside ``torch.no_grad`` and ``torch.inference_mode`` as well, never touch the
``grad`` of parameters, and leave the model's mode (train or eval) alone: choose it before. Random
starts come from PyTorch's global generator.

Shapes: B examples of any shape, K classes, C candidate classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Known, NonNegative, Positive, checked

Logits = Callable[[Tensor], Tensor]
Bounds = tuple[float, float] | None


class Attack(Protocol):
    """Maps a model, inputs (B, …) and labels (B,) to adversarial inputs of the same shape."""

    def __call__(self, model: Logits, x: Tensor, y: Tensor) -> Tensor:
        """Returns adversarial inputs."""


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus the right one, (B,): positive where the model errs.

    The objective f6 of Carlini & Wagner, "Towards evaluating the robustness of neural networks",
    2017, without its threshold. Unlike cross-entropy it does not fade where the model is confident.
    """
    right = logits.gather(1, y[:, None])
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)
    return (wrong - right).squeeze(1)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, y: F.cross_entropy(logits, y, reduction="sum"),
    "margin": lambda logits, y: margin(logits, y).sum(),
}


@checked
@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on the loss (Madry et al., 2018, arXiv 1706.06083, section 2.1).

    ``z <- project(z + rel_step * eps * direction(∇ loss(z)))``, where the direction is the sign
    of the gradient (``linf``) or the gradient over its norm (``l2``), and the projection is onto
    the ball of radius `eps` around x and then onto `bounds`.

    Special cases: one step without a random start is the fast gradient method (`FGSM`); one step of
    1.25 from a random start is the attack of fast adversarial training (Wong et al., 2020).

    Args:
        eps: radius of the ball, in the units of the inputs; 0 changes nothing.
        steps: gradient steps, at least 1.
        rel_step: length of a step as a multiple of eps; foolbox's default.
        random_start: start at a uniformly random point of the ball.
        norm: ``linf`` or ``l2``.
        loss: ``cross_entropy`` or ``margin``.
        bounds: least and largest value of an input; None where inputs have no bounds.

    Raises:
        UserError: a knob is out of range.
    """

    eps: NonNegative
    steps: Count = 40
    rel_step: Positive = 0.01 / 0.3
    random_start: bool = True
    norm: Literal["linf", "l2"] = "linf"
    loss: Annotated[str, Known(tuple(OBJECTIVES))] = "cross_entropy"
    bounds: Bounds = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Checks the bounds."""
        _check_bounds(self.bounds)

    def __call__(self, model: Logits, x: Tensor, y: Tensor) -> Tensor:
        """Returns inputs (B, …) that raise the model's loss against labels y (B,)."""
        with _gradients():
            y = y.clone()
            return self.maximise(lambda z: OBJECTIVES[self.loss](model(z), y), x)

    def maximise(self, objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Ascends any scalar that is a sum or mean of terms, each of one example of (B, …)."""
        norm = NORMS[self.norm]
        with _gradients():
            x = x.detach().clone()
            z = x
            if self.random_start:
                z = _into(x + norm.random(x) * self.eps, self.bounds)
            for _ in range(self.steps):
                point = z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(objective(point), point)
                moved = z + self.rel_step * self.eps * norm.direction(gradient)
                z = _into(x + norm.project(moved - x, self.eps), self.bounds)
        return z


def FGSM(eps: float, bounds: Bounds = (0.0, 1.0)) -> PGD:  # noqa: N802 - reads as the class it makes
    """The fast gradient sign method, ``x + eps sign(∇ loss)`` (Goodfellow et al., 2015)."""
    return PGD(eps, steps=1, rel_step=1.0, random_start=False, bounds=bounds)


@checked
@dataclass(frozen=True)
class DeepFool:
    """Steps to the nearest linearised decision boundary (Moosavi-Dezfooli et al., 2016).

    Their algorithm 2 in its form for the infinity norm: with ``f_k = z_k - z_top`` for the C - 1
    most likely other classes, go ``|f_k| / ||∇f_k||_1`` along ``sign(∇f_k)`` for the k nearest by
    that measure, until the label is wrong. The sum of the steps is stretched by ``1 + overshoot``
    and at last clipped to `eps`, as foolbox does it for attacks without a budget of their own.

    All candidates' gradients come out of one batched backward pass, and examples that are wrong
    already are left out of the later ones.

    Args:
        eps: largest change of an input value; ``inf`` for none.
        steps: at most so many steps.
        candidates: classes looked at, the most likely one included; 2 or more.
        overshoot: relative excess over the step to the boundary.
        bounds: least and largest value of an input, or None.

    Raises:
        UserError: a knob is out of range.
    """

    eps: NonNegative
    steps: Count = 50
    candidates: Annotated[int, Ge(2)] = 10
    overshoot: NonNegative = 0.02
    bounds: Bounds = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Checks the bounds."""
        _check_bounds(self.bounds)

    def __call__(self, model: Logits, x: Tensor, y: Tensor) -> Tensor:
        """Returns inputs (B, …) within eps of x, as near to it as the algorithm finds."""
        with _gradients():
            x, y = x.detach().clone(), y.clone()
            z, total = x.clone(), torch.zeros_like(x)
            classes_BC = model(x).detach().topk(min(self.candidates, _width(model, x))).indices
            active = torch.arange(len(x), device=x.device)
            for _ in range(self.steps):
                point = z[active].requires_grad_()
                logits = model(point)
                right = logits.argmax(1) == y[active]
                if not right.any():
                    break
                step = self._step(logits, point, classes_BC[active])
                active, step = active[right], step[right]
                total[active] += step
                z[active] = _into(x[active] + (1 + self.overshoot) * total[active], self.bounds)
            return _into(x + (z - x).clamp(-self.eps, self.eps), self.bounds)

    @staticmethod
    def _step(logits: Tensor, point: Tensor, classes_BC: Tensor) -> Tensor:
        B, C = classes_BC.shape
        rows_B = torch.arange(B, device=logits.device)
        # weights_CBK[k] picks z_k - z_top out of the logits of every example
        weights_CBK = logits.new_zeros(C - 1, *logits.shape)
        others_CB = classes_BC[:, 1:].T
        weights_CBK.scatter_(2, others_CB[:, :, None], 1.0)
        weights_CBK[:, rows_B, classes_BC[:, 0]] = -1.0
        gaps_CB = (weights_CBK * logits.detach()).sum(2).abs()
        (slopes,) = torch.autograd.grad(logits, point, weights_CBK, is_grads_batched=True)
        distances_CB = gaps_CB / (slopes.flatten(2).abs().sum(2) + 1e-8)
        nearest_B = distances_CB.argmin(0)
        # A little further than the boundary, or rounding could leave the example on it.
        lengths_B = distances_CB[nearest_B, rows_B] + 1e-4
        return lengths_B.view(-1, *[1] * (point.dim() - 1)) * slopes[nearest_B, rows_B].sign()


def in_chunks(
    attack: Attack,
    model: Logits,
    x: Tensor,
    y: Tensor,
    size: int,
    device: torch.device | None = None,
) -> Tensor:
    """Attacks a whole data set, `size` examples at a time; the result lies where x does.

    Args:
        attack: what to do with each chunk.
        model: maps inputs to logits.
        x: (N, …) inputs.
        y: (N,) labels.
        size: examples in a chunk.
        device: where the model is; None where x is.
    """
    device = device or x.device
    parts = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([attack(model, a.to(device), b.to(device)).to(x.device) for a, b in parts])


class _Norm(Protocol):
    @staticmethod
    def random(x: Tensor) -> Tensor: ...
    @staticmethod
    def direction(gradient: Tensor) -> Tensor: ...
    @staticmethod
    def project(delta: Tensor, eps: float) -> Tensor: ...


class _Linf:
    @staticmethod
    def random(x: Tensor) -> Tensor:
        return torch.empty_like(x).uniform_(-1, 1)

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        return gradient.sign()

    @staticmethod
    def project(delta: Tensor, eps: float) -> Tensor:
        return delta.clamp(-eps, eps)


class _L2:
    @staticmethod
    def random(x: Tensor) -> Tensor:
        """Uniform in the unit ball: a uniform direction, the radius distributed as U^(1/n)."""
        n = x[0].numel()
        radius = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / n)
        return _L2.direction(torch.randn_like(x)) * _per_example(radius, x)

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        return gradient / _per_example(_norms(gradient).clamp_min(1e-12), gradient)

    @staticmethod
    def project(delta: Tensor, eps: float) -> Tensor:
        shrink = (eps / _norms(delta).clamp_min(1e-12)).clamp_max(1)
        return delta * _per_example(shrink, delta)


NORMS: dict[str, type[_Norm]] = {"linf": _Linf, "l2": _L2}


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _per_example(values_B: Tensor, x: Tensor) -> Tensor:
    return values_B.view(-1, *[1] * (x.dim() - 1))


def _into(z: Tensor, bounds: Sequence[float] | None) -> Tensor:
    return z if bounds is None else z.clamp(*bounds)


def _width(model: Logits, x: Tensor) -> int:
    with torch.no_grad():
        return model(x[:1]).shape[1]


@contextmanager
def _gradients() -> Iterator[None]:
    """Autograd, whatever the caller switched off; what comes from inference mode must be cloned."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _check_bounds(bounds: Sequence[float] | None) -> None:
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise UserError(f"attack: bounds are [least, largest] or null, not {bounds}.")
