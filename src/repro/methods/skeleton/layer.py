"""What all skeletonisations are: layers, and no ways to train."""

from __future__ import annotations

from torch import nn

from repro.errors import UserError


class SkeletonLayer(nn.Module):
    """Maps masks to skeletons."""

    def attach(self, _model: nn.Module) -> None:
        """Refuses to train a network, which a config can ask for by mistake.

        Raises:
            UserError: always.
        """
        raise UserError(
            "a skeleton is a layer and not a way to train: use it in a loss (paper=skeleton does)."
        )
