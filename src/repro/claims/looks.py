"""Judging a study again and again while it grows, and being wrong no more often for it.

Whoever looks at a claim after every few seeds, and stops as soon as it holds, finds too much. So
each look gets a share of the error that a check may have (alpha spending: K. K. G. Lan and
D. L. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983), by their
function of Pocock's type,

    spent(t) = error · ln(1 + (e − 1) t),    t = seeds so far / most seeds,

which spends early: effects are often many standard deviations large here, and a run is dear. Each
look uses its own share up. The correlation of the looks would allow each of them a little more, but
is known for normal means alone; that shares add up to the error bounds it for every relation,
whatever is measured (Bonferroni's inequality).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def spent(part: float) -> float:
    """How much of the error may be spent by a part of all seeds, both between 0 and 1."""
    return math.log1p((math.e - 1) * part)


def shares(looks: Sequence[int]) -> list[float]:
    """The share of the error that each look may spend; they add up to 1.

    Args:
        looks: After how many seeds, rising; the last number is the most that there will be.
    """
    so_far = [0.0, *(spent(seeds / looks[-1]) for seeds in looks)]
    return [now - before for before, now in itertools.pairwise(so_far)]
