"""Looking at training from outside: feature norms, gradient norms, oscillation, speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


class FeatureNorms:
    """Watches the outputs of modules: the mean over a batch of each example's Euclidean norm.

    Args:
        modules: what to watch; their outputs are tensors (B, …).

    Attributes:
        active: whether forward passes are recorded.
        latest: the norm of every module in the latest recorded pass, as numbers without gradient.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.active = False
        self.latest: list[Tensor] = []
        for index, module in enumerate(modules):
            self.latest.append(torch.tensor(math.nan))
            module.register_forward_hook(self._recorder(index))

    def _recorder(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.active:
                norms_B = torch.linalg.vector_norm(output.detach().flatten(1).float(), dim=1)
                self.latest[index] = norms_B.mean()

        return record


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together; parameters without one count as zero."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def oscillation(series: Sequence[float] | Tensor, window: int) -> float:
    """How much a series swings around its own trend: the deviation from a moving average.

    Detrended, because feature norms grow throughout training: a plain standard deviation would
    measure the growth.

    Args:
        series: (T,) values.
        window: length of the centred moving average; odd, at most T.

    Returns:
        The root mean square of the deviations, over the places where the whole window fits; NaN
        when the series is shorter than the window.
    """
    values_T = torch.as_tensor(series, dtype=torch.float64)
    if len(values_T) < window:
        return math.nan
    trend = values_T.unfold(0, window, 1).mean(1)
    middle = values_T[window // 2 : window // 2 + len(trend)]
    return float((middle - trend).square().mean().sqrt())
