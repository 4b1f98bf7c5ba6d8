"""Neural GPU (Kaiser & Sutskever 2016, arXiv 1511.08228): a gated convolution applied n times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Fraction, checked


def hard_sigmoid(x: Tensor) -> Tensor:
    """``max(0, min(1, 1.2 sigmoid(x) - 0.1))``: gates that can be exactly open or shut."""
    return (1.2 * torch.sigmoid(x) - 0.1).clamp(0, 1)


class GatedConvolution(nn.Module):
    """A convolutional gated recurrent unit (CGRU): s <- u s + (1 - u) tanh(U * (r s) + b).

    Args:
        maps: channels of the state.
        kernel: side of the square filters, odd.
    """

    def __init__(self, maps: int, kernel: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(maps, 2 * maps, kernel, padding=kernel // 2)
        self.candidate = nn.Conv2d(maps, maps, kernel, padding=kernel // 2)
        assert self.gates.bias is not None
        nn.init.ones_(self.gates.bias)  # open gates: the first state survives many steps

    def forward(self, s: Tensor) -> Tensor:
        """Returns the next state for s (B, maps, width, length)."""
        update, reset = hard_sigmoid(self.gates(s)).chunk(2, dim=1)
        return update * s + (1 - update) * torch.tanh(self.candidate(reset * s))


class NeuralGPU(nn.Module):
    """Rewrites a sequence of symbols, in as many steps as it is long, with convolutions alone.

    The input is embedded into the first row of a width x length state; each step applies ``layers``
    gated convolutions; the first row is read out.

    Maps x (B, L), integer symbols, to logits (B, symbols, L).

    Args:
        input_shape: (L,).
        classes: number of symbols.
        maps: channels m of the state; 24 in the paper.
        width: rows w of the state; 4 in the paper.
        layers: gated convolutions in a step; 2 in the paper.
        kernel: side of the square filters; 3 in the paper.
        dropout: rate on the state after every step.

    Raises:
        UserError: a size below 1, an even kernel, or an input that is not a sequence.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        maps: Count = 24,
        width: Count = 4,
        layers: Count = 2,
        kernel: int = 3,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(
                f"neural_gpu: kernel must be odd, so that states keep their size; got {kernel}."
            )
        if len(input_shape) != 1:
            raise UserError(
                "neural_gpu rewrites sequences, (length,) of integers such as "
                f"dataset=binary_multiplication, not inputs of shape {tuple(input_shape)}."
            )
        self.steps = input_shape[0]
        self.width = width
        self.dropout = dropout
        self.embedding = nn.Embedding(classes, maps)
        self.cells = nn.ModuleList(GatedConvolution(maps, kernel) for _ in range(layers))
        self.readout = nn.Conv1d(maps, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, symbols, L)."""
        first_BML = torch.tanh(self.embedding(x.long())).transpose(1, 2)
        s = F.pad(first_BML[:, :, None], (0, 0, 0, self.width - 1))
        for _ in range(self.steps):
            for cell in self.cells:
                s = cell(s)
            if self.dropout:
                s = F.dropout(s, self.dropout, self.training)
        logits: Tensor = self.readout(s[:, :, 0])
        return logits
