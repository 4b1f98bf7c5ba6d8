"""What a config chooses: a layer's weights and statistics in, its pruned weights out."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from repro.errors import UserError, did_you_mean
from repro.toolbox.method import Method
from repro.toolbox.pruning.patterns import GROUPS, Pattern, lowest
from repro.toolbox.pruning.scores import NEED_GRADIENTS, SCORES
from repro.toolbox.pruning.sparsegpt import sparsegpt
from repro.toolbox.pruning.statistics import LayerStatistics


class Pruner(Method):
    """Prunes a layer, given what calibration says about it."""

    needs_gradients = False
    needs_hessian = False
    grad_norm = "l1"

    def attach(self, model: nn.Module) -> None:
        """Refuses: pruning comes after training.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{type(self).__name__} prunes a model that is trained already: use it with paper=gblm."
        )

    def start(self, pattern: Pattern) -> None:
        """Told the pattern before the first layer of a model."""

    @abstractmethod
    def __call__(self, weight: Tensor, statistics: LayerStatistics, pattern: Pattern) -> Tensor:
        """The new weights (outputs, inputs): zero where they are pruned."""


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

    def __init__(
        self,
        score: str = "gblm",
        alpha: float = 100.0,
        grad_norm: str = "l1",
        grad_reduce: str = "sum",
        group: str = "row",
        seed: int = 0,
    ) -> None:
        known = [*SCORES, "random"]
        if score not in known:
            raise UserError(
                f"score={score}: choose {', '.join(known)}.{did_you_mean(score, known)}"
            )
        for knob, value, words in (
            ("grad_norm", grad_norm, ("l1", "l2")),
            ("grad_reduce", grad_reduce, ("sum", "mean")),
            ("group", group, tuple(GROUPS)),
        ):
            if value not in words:
                raise UserError(f"{knob}={value}: choose {' or '.join(words)}.")
        if not alpha >= 0:
            raise UserError(f"alpha={alpha}: it is not negative.")
        self.score = score
        self.alpha = alpha
        self.grad_norm = grad_norm
        self.grad_reduce = grad_reduce
        self.group = group
        self.needs_gradients = score in NEED_GRADIENTS
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

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


class SparseGPT(Pruner):
    """Prunes by optimal brain surgeon and updates the weights that stay; see `sparsegpt`.

    Args:
        block: columns among which weights compete.
        damping: fraction of the Hessian's mean diagonal that is added to it.

    Raises:
        UserError: a block below 1, or damping that is not positive.
    """

    needs_hessian = True

    def __init__(self, block: int = 128, damping: float = 0.01) -> None:
        if block < 1 or damping <= 0:
            raise UserError(f"sparsegpt: block={block} and damping={damping} must be positive.")
        self.block = block
        self.damping = damping

    def __call__(self, weight: Tensor, statistics: LayerStatistics, pattern: Pattern) -> Tensor:
        """See `Pruner`."""
        assert statistics.hessian is not None
        return sparsegpt(weight, statistics.hessian, pattern, self.block, self.damping)
