"""End-to-end memory network (Sukhbaatar et al. 2015, arXiv 1503.08895)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Natural, checked


def position_encoding(words: int, dim: int) -> Tensor:
    """(words, dim) weights l_kj = (1 - j/J) - (k/d)(1 - 2j/J): a bag of words that knows order."""
    j_W1 = torch.arange(1, words + 1)[:, None] / words
    k_D = torch.arange(1, dim + 1) / dim
    return (1 - j_W1) - k_D * (1 - 2 * j_W1)


def weighted_counts(x: Tensor, weight_W: Tensor, vocabulary: int) -> Tensor:
    """How often each word occurs in a row, counted with the weight of its place.

    Args:
        x: (B, S, W) integer words; 0 is padding and counts nothing.
        weight_W: (W,) weights of the places.
        vocabulary: V.

    Returns:
        (B, S, V).
    """
    counts_BSV = torch.zeros(*x.shape[:2], vocabulary, device=x.device, dtype=weight_W.dtype)
    counts_BSV.scatter_add_(2, x.long(), weight_W.expand(x.shape))
    counts_BSV[..., 0] = 0
    return counts_BSV


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

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        classes: Count,
        dim: Count = 20,
        hops: Count = 3,
        linear_epochs: Natural = 0,
    ) -> None:
        super().__init__()
        if len(input_shape) != 2 or input_shape[0] < 2:
            raise UserError(
                "memory_network reads stories, (sentences + 1, words) of integers such as "
                f"dataset=babi_like, not inputs of shape {tuple(input_shape)}."
            )
        sentences = input_shape[0] - 1
        self.hops = hops
        self.linear_epochs = linear_epochs
        self.linear = linear_epochs > 0
        self.embeddings = nn.Parameter(0.1 * torch.randn(hops + 1, classes, dim))
        self.ages = nn.Parameter(0.1 * torch.randn(hops + 1, sentences, dim))

    def start_epoch(self, epoch: int) -> None:
        """Switches the softmax on after the linear epochs."""
        self.linear = epoch < self.linear_epochs

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        table = self.embeddings
        place_W = torch.arange(1, x.shape[2] + 1, device=x.device, dtype=table.dtype) / x.shape[2]
        k_D = torch.arange(1, table.shape[2] + 1, device=x.device, dtype=table.dtype)
        # `position_encoding` is affine in k, so two counts of words stand for all of its weights;
        # they are the same for every embedding, and smaller than the embedded words.
        still_BSV = weighted_counts(x, 1 - place_W, table.shape[1])
        moving_BSV = weighted_counts(x, 1 - 2 * place_W, table.shape[1])
        table_VK = table.transpose(0, 1).flatten(1)  # all hops side by side: one product for all
        k_K = (k_D / table.shape[2]).repeat(self.hops + 1)
        rows_BSK = still_BSV @ table_VK - k_K * (moving_BSV @ table_VK)
        rows_HBSD = rows_BSK.unflatten(-1, (self.hops + 1, -1)).movedim(2, 0)
        used_BS = x[:, :-1, 0] != 0  # empty memories get no attention

        u_BD = rows_HBSD[0, :, -1]
        memories_HBSD = rows_HBSD[:, :, :-1] + self.ages[:, None]
        for memory_BSD, output_BSD in pairwise(memories_HBSD):
            # Products and sums: stories are short, and `einsum` costs more than these under `vmap`.
            scores_BS = (memory_BSD * u_BD[:, None]).sum(-1)
            if self.linear:
                attention_BS = scores_BS * used_BS
            else:
                attention_BS = scores_BS.masked_fill(~used_BS, -1e9).softmax(-1)
            u_BD = u_BD + (attention_BS[:, :, None] * output_BSD).sum(1)
        return u_BD @ self.embeddings[-1].T
