"""GBLM-Pruner: one-shot pruning by weights, activations and gradients.

GBLM-Pruner (Das, Sun, Ma, Shen; arXiv 2311.04902) scores each weight of a linear layer by

    S_ij = |W_ij| A_j + |W_ij| G_ij,    A_j = sqrt(Σ_s Σ_t X_stj² / N),    G_ij = α Σ_s |∂L_s/∂W_ij|

over N calibration sequences s of tokens t, and sets the lowest scores of each row to zero. Nothing
is trained. The first term alone is Wanda. Any module with linear layers will do:

>>> import torch
>>> from torch import nn
>>> from repro.methods.gblm import ScorePruner
>>> from repro.toolbox.pruning import GradientNorms, InputMoments, Pattern, layers_of
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
>>> x, y = torch.randn(32, 4), torch.randn(32, 1)
>>> layers = layers_of(model)
>>> with InputMoments(layers) as moments, GradientNorms(model, layers) as gradients:
...     for part in range(0, 32, 8):  # losses of examples are summed: each keeps its own gradient
...         (model(x[part : part + 8]) - y[part : part + 8]).square().sum().backward()
>>> pruner = ScorePruner("gblm", alpha=100.0)
>>> for name, layer in layers.items():
...     statistics = moments.of(name, gradient=gradients.norm(name))
...     layer.weight.data = pruner(layer.weight.data, statistics, Pattern("2:4"))
>>> [int((layer.weight == 0).sum()) for layer in layers.values()]
[16, 4]

For deep models see `repro.toolbox.pruning.prune_blocks`. In the scores, W (outputs, inputs) are the
weights, A (inputs,) norms of the inputs, G (outputs, inputs) norms of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Known, NonNegative, checked
from repro.toolbox.pruning.patterns import GROUPS, Pattern, lowest
from repro.toolbox.pruning.pruners import Pruner
from repro.toolbox.pruning.scores import magnitude, wanda
from repro.toolbox.pruning.statistics import LayerStatistics

TINY = 1e-8  # keeps the inverse of a gradient finite, as in the official code


def gradient(w: Tensor, _a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| G``: what a first-order expansion of each sequence's loss says."""
    assert g is not None
    return w.abs() * g


def gblm(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| A + |W| G``, the paper's score."""
    assert a is not None
    assert g is not None
    return w.abs() * a + w.abs() * g  # not |W| (A + G): at alpha = 0 equal to Wanda to the last bit


def gblm_inverse(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| A / (G + 1e-8)``, a negative control."""
    assert a is not None
    assert g is not None
    return w.abs() * a / (g + TINY)


def gradient_inverse(w: Tensor, _a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| / (G + 1e-8)``, a negative control."""
    assert g is not None
    return w.abs() / (g + TINY)


SCORES: dict[str, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "gradient": gradient,
    "gblm": gblm,
    "gblm_inverse": gblm_inverse,
    "gradient_inverse": gradient_inverse,
}
NEED_GRADIENTS = {"gradient", "gblm", "gblm_inverse", "gradient_inverse"}


class ScorePruner(Pruner):
    """Sets the weights with the lowest scores to zero and leaves the others alone.

    Args:
        score: one of `SCORES`, or ``random``.
        alpha: α, by which gradients are multiplied.
        grad_norm: over sequences: ``l1`` or ``l2``.
        grad_reduce: ``sum`` over the sequences as in the official code, which makes the balance
            depend on their number N; ``mean`` divides (l1: by N, l2: by √N).
        group: among which weights scores are compared, see `lowest`.
        seed: of random scores.

    Raises:
        UserError: a word that is unknown, or a negative alpha.
    """

    @checked
    def __init__(
        self,
        score: Annotated[str, Known((*SCORES, "random"))] = "gblm",
        alpha: NonNegative = 100.0,
        grad_norm: Literal["l1", "l2"] = "l1",
        grad_reduce: Literal["sum", "mean"] = "sum",
        group: Annotated[str, Known(tuple(GROUPS))] = "row",
        seed: int = 0,
    ) -> None:
        self.score = score
        self.alpha = alpha
        self.grad_norm = grad_norm
        self.grad_reduce = grad_reduce
        self.group = group
        self.needs_gradients = score in NEED_GRADIENTS
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    @override
    def start(self, pattern: Pattern) -> None:
        """Starts random scores anew, so that they do not depend on what was pruned before."""
        self.generator.manual_seed(self.seed)

    def __call__(self, weight: Tensor, statistics: LayerStatistics, pattern: Pattern) -> Tensor:
        """See `Pruner`."""
        return weight.masked_fill(lowest(self.scores(weight, statistics), pattern, self.group), 0)

    def scores(self, weight: Tensor, statistics: LayerStatistics) -> Tensor:
        """The score of every weight, (outputs, inputs), float32 at least.

        Raises:
            UserError: the score needs gradients, and there are none.
        """
        if self.score == "random":
            return torch.rand(weight.shape, generator=self.generator).to(weight.device)
        gradient = statistics.gradient
        if self.needs_gradients:
            if gradient is None:
                raise UserError(f"score={self.score} needs gradients, and none were collected.")
            scale = self.alpha
            if self.grad_reduce == "mean":
                scale /= statistics.sequences ** (1.0 if self.grad_norm == "l1" else 0.5)
            gradient = scale * gradient
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return SCORES[self.score](wide, statistics.input_norm, gradient)
