"""Which weights a matrix of scores takes away: a fraction, or N of every M."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from repro.errors import UserError
from repro.knobs import check_choice


class Pattern:
    """A fraction of the weights (``0.6``), or N of every M consecutive inputs (``"2:4"``).

    Args:
        text: a number in [0, 1), or two whole numbers with 0 < N < M and a colon between them.

    Raises:
        UserError: it is neither.
    """

    def __init__(self, text: float | str) -> None:
        self.n = self.m = 0
        found = re.fullmatch(r"(\d+):(\d+)", str(text))
        try:
            if found:
                self.n, self.m = int(found[1]), int(found[2])
                self.sparsity = self.n / self.m
            else:
                self.sparsity = float(text)
        except (ValueError, ZeroDivisionError):
            self.sparsity = -1.0
        if not 0 <= self.sparsity < 1 or (found and self.n == 0):
            raise UserError(f"A pattern is a fraction such as 0.5, or N:M such as 2:4; not {text}.")

    @property
    def is_grouped(self) -> bool:
        """Whether it says N of every M."""
        return self.m > 0

    @property
    def name(self) -> str:
        """As part of a metric's name: ``60`` (per cent), or ``2of4``."""
        return f"{self.n}of{self.m}" if self.is_grouped else f"{100 * self.sparsity:g}"

    def __repr__(self) -> str:
        return f"Pattern({self.n}:{self.m})" if self.is_grouped else f"Pattern({self.sparsity:g})"


def lowest(score: Tensor, pattern: Pattern, group: str = "row") -> Tensor:
    """The entries with the lowest scores, as a pattern and a comparison group take them.

    ``N:M`` patterns compare within their M consecutive inputs, whatever the group. Otherwise:

    * ``row``: the first ``floor(inputs * sparsity)`` of each row in stable ascending order (Wanda,
      GBLM); of equal scores the one with the lower column goes first.
    * ``matrix``: all that do not exceed the ``int(numel * sparsity)``-th of the sorted scores,
      counted from zero (the official magnitude baseline): one more than that many.
    * ``row_share``: of each row the longest run of lowest scores whose sum is at most a share of
      the row's sum; the share is found by bisection (the "variant" of Wanda's code).

    Args:
        score: (outputs, inputs), not negative, not NaN.
        pattern: how many.
        group: one of `GROUPS`.

    Returns:
        (outputs, inputs) bool: True where a weight goes.

    A `UserError` says so if M does not divide the inputs.
    """
    check_choice("lowest", "group", group, GROUPS)
    if pattern.is_grouped:
        return _of_groups(score, pattern)
    if pattern.sparsity == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    return GROUPS[group](score, pattern.sparsity)


def _of_rows(score: Tensor, sparsity: float) -> Tensor:
    """All below the k-th value, then ties from the left: a stable order without sorting."""
    count = int(score.shape[1] * sparsity)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count, dim=1, keepdim=True).values
    below = score < threshold
    ties = score == threshold
    missing = count - below.sum(1, keepdim=True)
    return below | (ties & (ties.cumsum(1) <= missing))


def _of_matrix(score: Tensor, sparsity: float) -> Tensor:
    count = int(score.numel() * sparsity)
    return score <= score.flatten().kthvalue(count + 1).values


def _of_row_share(score: Tensor, sparsity: float) -> Tensor:
    ordered, columns = score.sort(dim=1, stable=True)
    summed = ordered.cumsum(1)
    low, high, share = 0.0, 0.8, 0.4
    while True:
        taken = summed <= share * summed[:, -1:]
        found = float(taken.float().mean())
        if abs(found - sparsity) <= 1e-3 or high - low < 1e-3:
            break
        low, high = (low, share) if found > sparsity else (share, high)
        share = (low + high) / 2
    return torch.zeros_like(taken).scatter_(1, columns, taken)


def _of_groups(score: Tensor, pattern: Pattern) -> Tensor:
    """Ranks the M scores of a group by comparing them with each other, ties from the left.

    Raises:
        UserError: M does not divide the inputs.
    """
    if score.shape[1] % pattern.m:
        raise UserError(
            f"Pattern {pattern.n}:{pattern.m} needs inputs in groups of {pattern.m}; a layer has"
            f" {score.shape[1]}."
        )
    members = score.unflatten(1, (-1, pattern.m)).unbind(2)
    goes = []
    for i, mine in enumerate(members):
        rank = torch.zeros_like(mine, dtype=torch.int8)
        for j, other in enumerate(members):
            if i != j:
                rank += other <= mine if j < i else other < mine
        goes.append(rank < pattern.n)
    return torch.stack(goes, dim=2).flatten(1)


GROUPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "row": _of_rows,
    "matrix": _of_matrix,
    "row_share": _of_row_share,
}
