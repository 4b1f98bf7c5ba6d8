"""Losses as boosting sees them: a constant to start from, a residual and a diagonal Hessian.

Scores F and targets y are (N, K). Any loss with these four functions can be boosted.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import checked

Prior = Literal["zeros", "log_prior"]


class Loss(Protocol):
    """What boosting asks of a loss.

    Attributes:
        newton: whether a step is scaled by a Newton line search (otherwise by 1).
        output_scale: m, what scores are multiplied with to become the outputs of an ordinary
            network (logits, or the prediction itself).
    """

    newton: bool
    output_scale: float

    def encode(self, target: Tensor) -> Tensor:
        """Targets as they come, to y (N, K)."""
        ...

    def constant(self, y_NK: Tensor) -> Tensor:
        """F_0 (K,), the scores before the first step."""
        ...

    def value(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """The loss of each point (N,)."""
        ...

    def residual(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """Minus the gradient of `value` by the scores (N, K)."""
        ...

    def hessian(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """Diagonal of the second derivative of `value` (N, K)."""
        ...


class SquaredError(Loss):
    """½ ‖y − F‖² of K real targets; the residual is the error, and no line search is needed."""

    newton = False
    output_scale = 1.0

    def encode(self, target: Tensor) -> Tensor:
        """(N,) or (N, K) numbers to (N, K) float64."""
        return target.double().reshape(len(target), -1)

    def constant(self, y_NK: Tensor) -> Tensor:
        """The mean."""
        return y_NK.mean(0)

    def value(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """Half the squared error."""
        return 0.5 * (y_NK - scores_NK).square().sum(1)

    def residual(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """The error y − F."""
        return y_NK - scores_NK

    @override
    def hessian(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(scores_NK)


class BinaryLogistic(Loss):
    """ln(1 + exp(−2yF)) for y in {−1, +1}, so that P(y = +1) = 1 / (1 + exp(−2F))."""

    newton = True
    output_scale = 2.0  # the logit of P is 2F

    def encode(self, target: Tensor) -> Tensor:
        """Labels 0 and 1 (N,) to −1 and +1 (N, 1): {0, 1} would silently be another model."""
        return (2.0 * target.double() - 1).reshape(-1, 1)

    def constant(self, y_NK: Tensor) -> Tensor:
        """½ ln((1 + ȳ) / (1 − ȳ)), half the log odds; kept finite when one class is absent."""
        limit = 1 - 1 / (len(y_NK) + 1)
        return torch.atanh(y_NK.mean(0).clamp(-limit, limit))

    def value(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """The logistic loss, without overflow."""
        return F.softplus(-2 * y_NK * scores_NK).sum(1)

    def residual(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """2y / (1 + exp(2yF)), without overflow."""
        return 2 * y_NK * torch.sigmoid(-2 * y_NK * scores_NK)

    def hessian(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """|r| (2 − |r|)."""
        r_NK = self.residual(y_NK, scores_NK).abs()
        return r_NK * (2 - r_NK)


class Multinomial(Loss):
    """Cross-entropy of softmax(F) for K classes, y one-hot.

    Args:
        classes: K.
        prior: F_0: ``zeros`` (the official code) or ``log_prior`` (log class frequencies, which
            minimise the loss among constants).
    """

    newton = True
    output_scale = 1.0

    @checked
    def __init__(self, classes: int, prior: Prior = "zeros") -> None:
        self.classes = classes
        self.prior = prior

    def encode(self, target: Tensor) -> Tensor:
        """Labels 0 … K − 1 (N,) to one-hot rows (N, K)."""
        return F.one_hot(target.long(), self.classes).double()

    def constant(self, y_NK: Tensor) -> Tensor:
        """Zeros, or log frequencies (of half a point where a class is absent)."""
        if self.prior == "zeros":
            return y_NK.new_zeros(self.classes)
        return (y_NK.sum(0).clamp(min=0.5) / len(y_NK)).log()

    def value(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """logsumexp(F) − Σ y F."""
        return scores_NK.logsumexp(1) - (y_NK * scores_NK).sum(1)

    def residual(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """Y − softmax(F)."""
        return y_NK - scores_NK.softmax(1)

    @override
    def hessian(self, y_NK: Tensor, scores_NK: Tensor) -> Tensor:
        """P(1 − p)."""
        p_NK = scores_NK.softmax(1)
        return p_NK * (1 - p_NK)


def loss_for(task: str, classes: int | None = None, prior: Prior = "zeros") -> Loss:
    """The paper's loss for a task.

    Args:
        task: ``regression`` or ``classification``.
        classes: number of classes; two mean the binary loss.
        prior: see `Multinomial`.

    Raises:
        UserError: there is no such loss.
    """
    if task == "regression":
        return SquaredError()
    if task != "classification" or classes is None or classes < 2:
        raise UserError(
            f"gbnn: boosts regression, or classification of two or more classes, not task={task}"
            f" with classes={classes}."
        )
    return BinaryLogistic() if classes == 2 else Multinomial(classes, prior)
