"""The variance-preserving diffusion process (Song et al., ICLR 2021): noising and sampling.

A predictor of the noise is any function of noised examples (B, …) and times (B,) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Predictor = Callable[[Tensor, Tensor], Tensor]
Time = TypeVar("Time", float, Tensor)


@dataclass(frozen=True)
class VPProcess:
    """``dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw`` with beta linear in the time, 0 to 1.

    Given x_0, the state x_t is ``sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise``.

    Args:
        beta_start: beta(0).
        beta_end: beta(1).
    """

    beta_start: float = 0.1
    beta_end: float = 20.0

    def beta(self, time: Time) -> Time:
        """The noise rate at times of any shape."""
        return self.beta_start + (self.beta_end - self.beta_start) * time

    def log_alpha_bar(self, time: Time) -> Time:
        """The logarithm of `alpha_bar`: minus the integral of beta from 0."""
        return -self.beta_start * time - 0.5 * (self.beta_end - self.beta_start) * (time * time)

    def alpha_bar(self, time: Tensor) -> Tensor:
        """The share of x_0's variance in x_t."""
        return torch.exp(self.log_alpha_bar(time))

    def time_at(self, log_alpha_bar: float) -> float:
        """The time with so much signal left, the inverse of `log_alpha_bar`."""
        slope = self.beta_end - self.beta_start
        root = math.sqrt(self.beta_start**2 - 2 * slope * log_alpha_bar)
        return -2 * log_alpha_bar / (self.beta_start + root)

    def signal(self, time: float) -> tuple[float, float]:
        """Factors ``(alpha, sigma)`` of x_0 and of the noise in x_t, in double precision."""
        log = self.log_alpha_bar(time)
        return math.exp(0.5 * log), math.sqrt(-math.expm1(log))

    def noised(self, x0: Tensor, time_B: Tensor, noise: Tensor) -> Tensor:
        """x_t of examples (B, …) for times (B,) and standard normal noise (B, …)."""
        alpha = _like(self.alpha_bar(time_B), x0)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    @torch.no_grad()
    def euler_maruyama(
        self,
        predict: Predictor,
        shape: Sequence[int],
        steps: int,
        generator: torch.Generator,
        end: float = 1e-3,
        start: float = 1.0,
        first: Tensor | None = None,
        to_zero: bool = False,
    ) -> Tensor:
        """Samples with the reverse SDE, from ``start`` to ``end``; the last step adds no noise.

        Args:
            predict: the noise predictor.
            shape: (B, …) of the samples.
            steps: calls of the predictor.
            generator: of the noise; its device is that of the samples.
            end: where to stop, as the score is not defined at 0.
            start: the time of the first noise, for processes that do not end at 1.
            first: what to start from; None: standard normal noise.
            to_zero: the last of the steps goes from ``end`` to 0, which takes away most of the
                noise that is left at ``end``.
        """
        x = _noise(shape, generator) if first is None else first
        even = steps - 1 if to_zero else steps
        width = (start - end) / max(even, 1)
        for step in range(steps):
            h = width if step < even else end
            time = torch.tensor(start - step * width, dtype=x.dtype, device=x.device)
            beta = self.beta(time)
            score = -predict(x, time.expand(len(x))) / (1 - self.alpha_bar(time)).sqrt()
            x = x + h * beta * (0.5 * x + score)
            if step < steps - 1:
                x = x + (h * beta).sqrt() * _noise(shape, generator).to(x)
        return x

    @torch.no_grad()
    def ddim(
        self,
        predict: Predictor,
        shape: Sequence[int],
        steps: int,
        generator: torch.Generator,
        end: float = 1e-3,
        limits: tuple[float, float] | None = None,
    ) -> Tensor:
        """Samples deterministically from noise (Song, Meng, Ermon, 2021).

        It is DPM-Solver of order one, with steps even in the time.

        Args:
            predict: see `euler_maruyama`; likewise the following.
            shape: (B, …) of the samples.
            steps: calls of the predictor.
            generator: of the first noise.
            end: where to stop.
            limits: the range of the data, to which every guess of x_0 is cut. At time 1 a guess
                multiplies the predictor's error by 150, so that weak predictors need it.
        """
        x = _noise(shape, generator)
        times = torch.linspace(1, end, steps + 1, device=x.device)
        alphas = self.alpha_bar(times)
        for now, then, time in zip(alphas[:-1], alphas[1:], times[:-1], strict=True):
            noise = predict(x, time.expand(len(x)))
            x0 = (x - (1 - now).sqrt() * noise) / now.sqrt()
            if limits is not None:
                x0 = x0.clamp(*limits)
                noise = (x - now.sqrt() * x0) / (1 - now).sqrt()
            x = then.sqrt() * x0 + (1 - then).sqrt() * noise
        return x


@dataclass(frozen=True)
class ScaledLinear(VPProcess):
    """The process whose beta has a root that is linear in the time, as latent diffusion has.

    Args:
        beta_start: beta(0); a thousand times that of Stable Diffusion's first step.
        beta_end: beta(1), likewise.
    """

    beta_start: float = 0.85
    beta_end: float = 12.0

    @property
    def _root(self) -> tuple[float, float]:
        """Offset and slope of beta's root."""
        offset = math.sqrt(self.beta_start)
        return offset, math.sqrt(self.beta_end) - offset

    def beta(self, time: Time) -> Time:
        """The noise rate at times of any shape."""
        offset, slope = self._root
        root = offset + slope * time
        return root * root

    def log_alpha_bar(self, time: Time) -> Time:
        """Minus the integral of beta from 0."""
        offset, slope = self._root
        return -time * (offset**2 + slope * time * (offset + slope * time / 3))

    def time_at(self, log_alpha_bar: float) -> float:
        """The inverse of `log_alpha_bar`."""
        offset, slope = self._root
        return (math.cbrt(offset**3 - 3 * slope * log_alpha_bar) - offset) / slope


@dataclass(frozen=True)
class Discrete(VPProcess):
    """The process of a network that was trained on N discrete noise levels, made continuous.

    Level i of the table has the time (i + 1) / N; between levels log alpha_bar is linear in the
    time, and beta constant.

    Args:
        beta_start: of the first level, its share of the variance times N.
        beta_end: of the last level, likewise.
        scaled: the root of beta is linear in the level (Stable Diffusion), rather than beta.
        levels: N.
    """

    beta_start: float = 0.85
    beta_end: float = 12.0
    scaled: bool = True
    levels: int = 1000

    @cached_property
    def _logs(self) -> np.ndarray:
        """Log alpha_bar at times 0, 1/N, …, 1."""
        power = 0.5 if self.scaled else 1.0
        first, last = ((each / self.levels) ** power for each in (self.beta_start, self.beta_end))
        betas = np.linspace(first, last, self.levels) ** (1 / power)
        return np.concatenate([[0.0], np.log1p(-betas).cumsum()])

    def beta(self, time: Time) -> Time:
        """The noise rate at times of any shape: that of the level which ends next."""
        return self._looked_up(time, self._rates)

    def log_alpha_bar(self, time: Time) -> Time:
        """Minus the integral of beta from 0."""
        return self._looked_up(time, self._interpolated)

    def time_at(self, log_alpha_bar: float) -> float:
        """The inverse of `log_alpha_bar`."""
        level = np.interp(-log_alpha_bar, -self._logs, np.arange(self.levels + 1))
        return float(level) / self.levels

    def _rates(self, level: np.ndarray) -> np.ndarray:
        last = np.ceil(level).clip(1, self.levels).astype(int)
        return -np.diff(self._logs)[last - 1] * self.levels

    def _interpolated(self, level: np.ndarray) -> np.ndarray:
        return np.interp(level, np.arange(self.levels + 1), self._logs)

    def _looked_up(self, time: Time, table: Callable[[np.ndarray], np.ndarray]) -> Time:
        """A table's values at times, given as they came."""
        if isinstance(time, Tensor):
            at = table(time.detach().double().cpu().numpy() * self.levels)
            return torch.as_tensor(at).to(time)
        return float(table(np.asarray(time * self.levels)))


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def _like(values_B: Tensor, x: Tensor) -> Tensor:
    return values_B.view(-1, *[1] * (x.ndim - 1))
