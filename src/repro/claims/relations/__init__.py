"""The relations that a check can name: one class each, with its region, words and judging.

A relation is a subclass of `Check` whose field ``relation`` is a ``Literal`` of its names; defining
the class registers it. Most derive from `MetricCheck` and say only what a seed's number is
(``sample``) and where the mean of these numbers has to lie (``region``). `RELATIONS` holds them by
name.

Importing them is cheap (no torch, no SciPy), so that listing papers stays fast.
"""

from repro.claims.relations import curves, pairs
from repro.claims.relations.base import RELATIONS, Check, MetricCheck, Outcome, Sample

__all__ = [
    "RELATIONS",
    "Check",
    "MetricCheck",
    "Outcome",
    "Sample",
    "curves",
    "pairs",
]
