"""How good credible intervals are, and how well chains have mixed.

Shapes: C chains, S samples of each, K numbers (bins of an observable).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import norm, rankdata
from torch import Tensor

Z = 1.959963984540054  # of 95 %


class Interval(NamedTuple):
    """mean ± 1.96 std over samples, with the population's standard deviation, for K numbers."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, samples_SK: Tensor) -> Interval:
        """That of samples: those of all chains, so that the spread between chains is in it."""
        return cls(samples_SK.mean(0), samples_SK.std(0, correction=0))

    def coverage(self, truth_K: Tensor) -> float:
        """The share of the numbers that lie within their interval."""
        inside = (self.mean - truth_K).abs() <= Z * self.std
        return float(inside.double().mean())

    def score(self, truth_K: Tensor) -> float:
        """Mean interval score at 95 % (Winkler, 1972): width and 40 times the overshoot."""
        overshoot = ((self.mean - truth_K).abs() - Z * self.std).clamp(min=0)
        return float((2 * Z * self.std + 40 * overshoot).mean())

    def error(self, truth_K: Tensor) -> float:
        """Mean absolute error of the mean."""
        return float((self.mean - truth_K).abs().mean())

    @property
    def width(self) -> float:
        """Mean standard deviation."""
        return float(self.std.mean())


def crps(samples_SK: Tensor, truth_K: Tensor) -> float:
    """Continuous ranked probability score of samples, mean over numbers: E|O − o| − ½E|O − O'|."""
    ordered = samples_SK.sort(0).values
    count = len(ordered)
    ranks = 2 * torch.arange(1, count + 1, device=ordered.device) - count - 1
    spread_K = (ranks[:, None] * ordered).sum(0) / count**2  # half the mean difference of pairs
    return float(((samples_SK - truth_K).abs().mean(0) - spread_K).mean())


def within_between(samples_CSK: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (K,) within chains and between their means; their sum is that of the pool."""
    return samples_CSK.var(1, correction=0).mean(0), samples_CSK.mean(1).var(0, correction=0)


def recalibration(predicted: Tensor, variance: Tensor, target: Tensor, members: int) -> float:
    """α by which predicted standard deviations are to be multiplied.

    α² = −1/M + (M − 3)/(M − 1) mean((μ − F)² / var), with unbiased variances of M members.
    """
    ratio = ((predicted - target).square() / variance).mean()
    return math.sqrt(max(0.0, float(-1 / members + (members - 3) / (members - 1) * ratio)))


def _split(draws_CSK: Tensor) -> Tensor:
    half = draws_CSK.shape[1] // 2
    return torch.cat([draws_CSK[:, :half], draws_CSK[:, -half:]])


def _normal_ranks(draws_CSK: Tensor) -> Tensor:
    flat = draws_CSK.flatten(0, 1).double().cpu()
    quantiles = norm.ppf((rankdata(flat, axis=0) - 0.375) / (len(flat) + 0.25))  # Blom's offsets
    return torch.from_numpy(quantiles).to(draws_CSK.device).view(draws_CSK.shape)


def _plain_rhat(draws_CSK: Tensor) -> Tensor:
    count = draws_CSK.shape[1]
    within = draws_CSK.var(1).mean(0)
    between = draws_CSK.mean(1).var(0)
    return ((count - 1) / count + between / within).sqrt()


def rhat(draws_CSK: Tensor) -> Tensor:
    """Rank-normalised split R-hat (K,) (Vehtari et al., 2021): the larger of bulk and tail.

    Args:
        draws_CSK: at least four draws of each of one or more chains.
    """
    halves = _split(draws_CSK)
    middle = halves.flatten(0, 1).quantile(0.5, dim=0)
    bulk, tail = _plain_rhat(_normal_ranks(halves)), _normal_ranks((halves - middle).abs())
    return torch.maximum(bulk, _plain_rhat(tail))


def effective_size(draws_CSK: Tensor) -> Tensor:
    """Bulk effective sample size (K,) of rank-normalised split chains (Vehtari et al., 2021).

    Autocorrelations are summed by Geyer's initial monotone sequence.

    Args:
        draws_CSK: at least eight draws of each chain.
    """
    draws = _normal_ranks(_split(draws_CSK))
    chains, count, _ = draws.shape
    centred = draws - draws.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * count, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * count, dim=1)[:, :count] / count
    within = covariance[:, 0].mean(0) * count / (count - 1)
    pooled = within * (count - 1) / count
    if chains > 1:
        pooled = pooled + draws.mean(1).var(0)
    correlation_SK = 1 - (within - covariance.mean(0)) / pooled
    correlation_SK[0] = 1
    return torch.stack([_size(each, chains * count) for each in correlation_SK.unbind(1)])


def _size(correlation_S: Tensor, draws: int) -> Tensor:
    pairs = correlation_S[: len(correlation_S) // 2 * 2].view(-1, 2)[:-1]
    sums = pairs.sum(1)
    positive = int(((sums <= 0).long().cumsum(0) == 0).sum())  # up to the first that is not
    kept = min(positive, len(pairs) - 1)
    # Half a pair more has less variance (Stan and arviz add it, too).
    time = -1 + 2 * sums[:kept].cummin(0).values.sum() + pairs[kept, 0].clamp(min=0)
    return draws / time.clamp(min=1 / math.log10(draws))
