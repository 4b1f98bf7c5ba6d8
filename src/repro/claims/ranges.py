"""Which values a metric can have at all, by the words of its name."""

from __future__ import annotations

import math
import re

FRACTIONS = {
    "accuracy", "auc", "auroc", "cldice", "dice", "ece", "fraction", "iou", "ks", "precision",
    "reached", "recall", "share", "sparsity",
}  # fmt: skip
# Words that make something else of what they stand with: a drop of accuracy can be negative.
CHANGES = {"doubling", "drop", "exponent", "gain", "gap", "per", "rise", "slope", "to"}
NEVER_NEGATIVE = {
    "bits", "bytes", "epochs", "error", "flops", "gradients", "lr", "mb", "ms", "multiplications",
    "nodes", "norm", "parameters", "perplexity", "rmse", "seconds", "steps", "target", "units",
}  # fmt: skip


def range_of(metric: str) -> tuple[float, float]:
    """The lowest and the highest value of a metric, infinite where its name does not say.

    Examples:
        >>> range_of("test/worst_accuracy")
        (0.0, 1.0)
        >>> range_of("test/perplexity_50")
        (0.0, inf)
        >>> range_of("test/accuracy_drop")
        (-inf, inf)
    """
    words = re.findall("[a-z]+", metric.rpartition("/")[2])
    if CHANGES.isdisjoint(words):
        if not FRACTIONS.isdisjoint(words):
            return 0.0, 1.0
        if words and words[-1] in NEVER_NEGATIVE:
            return 0.0, math.inf
    return -math.inf, math.inf
