"""What a config chooses: a layer's weights and statistics in, its pruned weights out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Positive, checked
from repro.toolbox.method import Method
from repro.toolbox.pruning.patterns import Pattern
from repro.toolbox.pruning.sparsegpt import sparsegpt
from repro.toolbox.pruning.statistics import LayerStatistics


class Pruner(Method):
    """Prunes a layer, given what calibration says about it."""

    needs_gradients = False
    needs_hessian = False
    grad_norm: Literal["l1", "l2"] = "l1"

    @override
    def attach(self, model: nn.Module) -> None:
        """Refuses: pruning comes after training.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{type(self).__name__} prunes a model that is trained already: use it with a paper "
            "that prunes (repro list)."
        )

    def start(self, pattern: Pattern) -> None:
        """Told the pattern before the first layer of a model."""

    @abstractmethod
    def __call__(self, weight: Tensor, statistics: LayerStatistics, pattern: Pattern) -> Tensor:
        """The new weights (outputs, inputs): zero where they are pruned."""


class SparseGPT(Pruner):
    """Prunes by optimal brain surgeon and updates the weights that stay; see `sparsegpt`.

    Args:
        block: columns among which weights compete.
        damping: fraction of the Hessian's mean diagonal that is added to it.

    Raises:
        UserError: a block below 1, or damping that is not positive.
    """

    needs_hessian = True

    @checked
    def __init__(self, block: Count = 128, damping: Positive = 0.01) -> None:
        self.block = block
        self.damping = damping

    def __call__(self, weight: Tensor, statistics: LayerStatistics, pattern: Pattern) -> Tensor:
        """See `Pruner`."""
        assert statistics.hessian is not None
        return sparsegpt(weight, statistics.hessian, pattern, self.block, self.damping)
