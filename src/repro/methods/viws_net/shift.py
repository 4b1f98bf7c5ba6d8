"""Long short-term shift: messengers visit other frames between two blocks, and come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Count, checked

LONG_SHORT = (1, 0, -1, 2, 0, -2)  # frames; 1 is short term, 2 long term, 0 stays


class TemporalShift:
    """Rolls groups of tokens by frames: forward after even blocks, back after odd ones.

    What rolls off the end of a clip enters at its beginning. If a stage's depth is odd its last
    block does not shift, so that every token ends where it began.

    Args:
        frames: T of each clip.
        shifts: by how many frames each group goes.
        along: ``time``; ``clip`` rolls to other clips instead, a control; ``none`` does nothing.
    """

    @checked
    def __init__(
        self,
        frames: Count,
        shifts: Sequence[int] = LONG_SHORT,
        along: Literal["time", "clip", "none"] = "time",
    ) -> None:
        self.frames, self.shifts, self.along = frames, list(shifts), along

    def __call__(self, tokens_NMC: Tensor, block: int, depth: int) -> Tensor:
        """The tokens behind a block.

        Args:
            tokens_NMC: of all frames, clip after clip.
            block: its number in the stage.
            depth: blocks of the stage.

        Raises:
            UserError: the tokens do not make whole groups.
        """
        if self.along == "none" or (depth % 2 and block == depth - 1):
            return tokens_NMC
        if tokens_NMC.shape[1] % len(self.shifts):
            raise UserError(
                f"{tokens_NMC.shape[1]} messengers do not make {len(self.shifts)} equal groups:"
                " choose a multiple, or other shifts."
            )
        sign = -1 if block % 2 else 1
        dim = 1 if self.along == "time" else 0
        groups = tokens_NMC.unflatten(0, (-1, self.frames)).unflatten(2, (len(self.shifts), -1))
        rolled = [
            groups[:, :, number].roll(sign * shift, dim) for number, shift in enumerate(self.shifts)
        ]
        return torch.cat(rolled, 2).flatten(0, 1)
