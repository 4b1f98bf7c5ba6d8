"""End-to-end memory network (Sukhbaatar et al. 2015, arXiv 1503.08895)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.models.checks import require_positive


def position_encoding(words: int, dim: int) -> Tensor:
    """(words, dim) weights l_kj = (1 - j/J) - (k/d)(1 - 2j/J): a bag of words that knows order."""
    j_J1 = torch.arange(1, words + 1)[:, None] / words
    k_D = torch.arange(1, dim + 1) / dim
    return (1 - j_J1) - k_D * (1 - 2 * j_J1)


class MemoryNetwork(nn.Module):
    """Reads stories through ``hops`` rounds of attention over their sentences.

    Adjacent weight sharing: the output embedding of a hop is the input embedding of the next, the
    question uses the first one and the answer the last one. Sentences are position-encoded and
    carry a learnt embedding of their age. Weights start at N(0, 0.1^2).

    For the first ``linear_epochs`` epochs attention has no softmax ("linear start"): the paper's
    two-stage training.

    Maps x (B, S + 1, W), integer words, to logits (B, classes) over the vocabulary. Rows 0 to S - 1
    of an example are sentences from old to new, row S is the question; word 0 is padding.

    Args:
        input_shape: (S + 1, W).
        classes: size of the vocabulary, padding included.
        dim: size of the embeddings.
        hops: rounds of attention.
        linear_epochs: epochs without softmax.

    Raises:
        UserError: a size below 1, or an input that is not (sentences, words).
    """

    encoding_WD: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        dim: int = 20,
        hops: int = 3,
        linear_epochs: int = 0,
    ) -> None:
        super().__init__()
        require_positive("memory_network", classes=classes, dim=dim, hops=hops)
        if len(input_shape) != 2 or input_shape[0] < 2:
            raise UserError(
                "memory_network reads stories, (sentences + 1, words) of integers such as "
                f"dataset=babi_like, not inputs of shape {tuple(input_shape)}."
            )
        sentences, words = input_shape[0] - 1, input_shape[1]
        self.hops = hops
        self.linear_epochs = linear_epochs
        self.linear = linear_epochs > 0
        self.embeddings = nn.Parameter(0.1 * torch.randn(hops + 1, classes, dim))
        self.ages = nn.Parameter(0.1 * torch.randn(hops + 1, sentences, dim))
        # Not a buffer: a constant needs no place in checkpoints, and follows the input's device.
        self.encoding_WD = position_encoding(words, dim)

    def start_epoch(self, epoch: int) -> None:
        """Switches the softmax on after the linear epochs."""
        self.linear = epoch < self.linear_epochs

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        encoding_WD = self.encoding_WD.to(x.device)
        x = x.long()
        spoken = (x != 0)[..., None]
        used = spoken[:, :-1, :, 0].any(-1)  # (B, S): empty memories get no attention

        def embed(k: int) -> Tensor:
            return (self.embeddings[k][x] * spoken * encoding_WD).sum(2)  # (B, S + 1, D)

        read_BSD = embed(0)
        u_BD = read_BSD[:, -1]
        memory_BSD = read_BSD[:, :-1] + self.ages[0]
        for hop in range(self.hops):
            scores_BS = torch.einsum("bsd,bd->bs", memory_BSD, u_BD)
            if self.linear:
                attention_BS = scores_BS * used
            else:
                attention_BS = scores_BS.masked_fill(~used, -1e9).softmax(-1)
            output_BSD = embed(hop + 1)[:, :-1] + self.ages[hop + 1]
            u_BD = u_BD + torch.einsum("bs,bsd->bd", attention_BS, output_BSD)
            memory_BSD = output_BSD
        return u_BD @ self.embeddings[self.hops].T
