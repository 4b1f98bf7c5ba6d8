"""Reconstruction losses: how far a quantised unit's output lies from the float one's.

All map (output o, target t, importance g) to a scalar. The first dimension is the batch; channels
are the second one of pictures (B, C, H, W) and the last one of everything else. ``g`` is the
gradient of the task's loss with respect to the float unit's output, which Fisher losses need.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.knobs import check_choice

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _channel_sum(error: Tensor) -> Tensor:
    """Sum over channels, mean over everything else: the scale of the published methods."""
    return error.sum(1 if error.dim() == 4 else -1).mean()


def l2(o: Tensor, t: Tensor, _g: Tensor | None = None) -> Tensor:
    """Squared error."""
    return _channel_sum((o - t).square())


def l1(o: Tensor, t: Tensor, _g: Tensor | None = None) -> Tensor:
    """Absolute error."""
    return _channel_sum((o - t).abs())


def lp(o: Tensor, t: Tensor, _g: Tensor | None = None) -> Tensor:
    """The error to the power 2.4."""
    return _channel_sum((o - t).abs().pow(2.4))


def normalised(o: Tensor, t: Tensor, _g: Tensor | None = None) -> Tensor:
    """``Σ (o - t)² / Σ t²`` of each example."""
    o, t = o.flatten(1), t.flatten(1)
    return ((o - t).square().sum(1) / t.square().sum(1).clamp(min=1e-12)).mean()


def cosine(o: Tensor, t: Tensor, _g: Tensor | None = None) -> Tensor:
    """``1 - ⟨o, t⟩ / (‖o‖ ‖t‖)`` of each example."""
    return (1 - F.cosine_similarity(o.flatten(1), t.flatten(1))).mean()


def kl(o: Tensor, t: Tensor, _g: Tensor | None = None) -> Tensor:
    """``KL(softmax t ‖ softmax o)`` over the last dimension; for logits."""
    log_t, log_o = t.log_softmax(-1), o.log_softmax(-1)
    return (log_t.exp() * (log_t - log_o)).sum(-1).mean()


def fisher(o: Tensor, t: Tensor, g: Tensor | None = None) -> Tensor:
    """``Σ (o - t)² g²``, the diagonal of the Fisher matrix as weights."""
    assert g is not None
    return _channel_sum((o - t).square() * g.square())


def fisher_full(o: Tensor, t: Tensor, g: Tensor | None = None) -> Tensor:
    """BRECQ's full Fisher option: ``(Σ |o - t||g|) · |o - t||g| / 100``."""
    assert g is not None
    error = ((o - t) * g).abs()
    return (error.flatten(1).sum(1).view(-1, *[1] * (o.dim() - 1)) * error).mean() / 100


LOSSES: dict[str, Loss] = {
    "l2": l2,
    "l1": l1,
    "lp": lp,
    "normalised": normalised,
    "cosine": cosine,
    "kl": kl,
    "fisher": fisher,
    "fisher_full": fisher_full,
}
WITH_GRADIENTS = ("fisher", "fisher_full")


def loss_for(name: str) -> Loss:
    """The function behind ``method.loss``."""
    check_choice("loss_for", "loss", name, LOSSES)
    return LOSSES[name]


def scaled_gradients(gradients: Tensor) -> Tensor:
    """Gradients divided by their root mean square: Adam's epsilon must not swallow them."""
    return gradients / gradients.square().mean().sqrt().clamp(min=torch.finfo(gradients.dtype).tiny)
