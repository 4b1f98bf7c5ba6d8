"""k-means of numbers: after one sort, an iteration of Lloyd's costs k binary searches.

Clusters of numbers are intervals, so that their weights and sums are differences of prefix sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.knobs import Count, Natural, checked


@checked
def kmeans_1d(
    x_GN: Tensor,
    k: Count,
    weights_GN: Tensor | None = None,
    iterations: Natural = 25,
    start_Gk: Tensor | None = None,
) -> Tensor:
    """Centres of k-means for each of G sets of numbers, by Lloyd's iterations.

    They stop when no number changes its cluster. A cluster that is empty keeps its centre. Where a
    set has at most k distinct numbers, these are the centres.

    Args:
        x_GN: N numbers in each of G sets.
        k: centres.
        weights_GN: how much each number counts, not negative; a set whose weights are all zero
            counts every number alike. None: all alike.
        iterations: at most.
        start_Gk: first centres, rising; None: quantiles (l + ½)/k of the weighted numbers.

    Returns:
        Centres (G, k), rising, of the dtype of the numbers.
    """
    values_GN, order_GN = _sorted(x_GN, weights_GN is not None)
    if weights_GN is None:
        weights_GN = torch.ones((), dtype=torch.float64, device=x_GN.device).expand_as(x_GN)
    else:
        weights_GN = weights_GN.double().gather(1, order_GN)
        nothing = weights_GN.sum(1, keepdim=True) == 0
        weights_GN = torch.where(nothing, torch.ones_like(weights_GN), weights_GN)
    mass_GM = _prefix_sums(weights_GN)
    sums_GM = _prefix_sums(weights_GN * values_GN)
    if start_Gk is None:
        centres_Gk = _quantiles(values_GN, mass_GM, k)
    else:
        centres_Gk = start_Gk.to(values_GN).clone()
    edges_GE = torch.zeros(0)
    for _ in range(iterations):
        before, edges_GE = edges_GE, _edges(values_GN, centres_Gk)
        if torch.equal(before, edges_GE):
            break
        mass_Gk, sums_Gk = mass_GM.gather(1, edges_GE).diff(), sums_GM.gather(1, edges_GE).diff()
        means_Gk = (sums_Gk / mass_Gk).to(values_GN.dtype)
        centres_Gk = torch.where(mass_Gk > 0, means_Gk, centres_Gk)
    return _distinct(values_GN, centres_Gk)


def _sorted(x_GN: Tensor, with_order: bool) -> tuple[Tensor, Tensor]:
    """The numbers in rising order, and where they stood, if that is asked for."""
    if with_order or x_GN.device.type != "cpu":
        values_GN, order_GN = x_GN.detach().sort(dim=1)
        return values_GN, order_GN
    # Without indices NumPy sorts several times as fast as PyTorch.
    array = x_GN.detach().numpy().copy()
    array.sort(axis=1)
    return torch.from_numpy(array), torch.empty(0)


def _prefix_sums(x_GN: Tensor) -> Tensor:
    """Sums of the first 0, 1, …, N, (G, N + 1), in double precision."""
    return torch.nn.functional.pad(x_GN.double().cumsum(1), (1, 0))


def _quantiles(values_GN: Tensor, mass_GM: Tensor, k: int) -> Tensor:
    """The numbers at the quantiles (l + ½)/k of the weights."""
    share_k = (torch.arange(k, device=values_GN.device) + 0.5) / k
    wanted_Gk = share_k.double() * mass_GM[:, -1:]
    # contiguous(): a slice of prefix sums would be copied by the search, with a warning.
    place_Gk = torch.searchsorted(mass_GM[:, 1:].contiguous(), wanted_Gk)
    return values_GN.gather(1, place_Gk.clamp(max=values_GN.shape[1] - 1))


def _edges(values_GN: Tensor, centres_Gk: Tensor) -> Tensor:
    """Where clusters begin and end in the sorted numbers, (G, k + 1)."""
    middles = (centres_Gk[:, 1:] + centres_Gk[:, :-1]) / 2
    inner = torch.searchsorted(values_GN, middles.contiguous())
    first = inner.new_zeros(len(values_GN), 1)
    return torch.cat([first, inner, first + values_GN.shape[1]], dim=1)


def _distinct(values_GN: Tensor, centres_Gk: Tensor) -> Tensor:
    """The centres, but for sets with no more distinct numbers than centres: those, repeated."""
    k = centres_Gk.shape[1]
    changes_GN = values_GN.diff(dim=1) != 0
    for row in (changes_GN.sum(1) < k).nonzero().flatten().tolist():
        distinct = values_GN[row].unique()
        centres_Gk[row] = torch.cat([distinct, distinct[-1:].expand(k - len(distinct))])
    return centres_Gk
