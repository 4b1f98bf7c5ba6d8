"""Differentiable sampling of directed acyclic graphs: a permutation times a mask of edges.

After VI-DP-DAG (Charpentier, Kibler and Günnemann), as the paper's official code uses it.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Count, Natural, NonNegative, Positive, checked
from repro.methods.bn_marl.layers import Linear

ENUMERATED = 5  # up to so many agents all n! orders are scored at once: no Python loop over samples


@dataclass
class DagSample:
    """Graphs drawn, and the noise they were drawn with.

    Attributes:
        graph: G (..., n, n), zeros and ones; gradients pass straight through.
        order: the hard permutation P (..., n, n); agent j is at place k iff ``P[k, j] = 1``.
        edges: the hard mask U (..., n, n).
        noise: Gumbel noise of the order (..., n, n) and of the edges (..., n, n, 2).
    """

    graph: Tensor
    order: Tensor
    edges: Tensor
    noise: tuple[Tensor, Tensor]


def sinkhorn(log_scores: Tensor, rounds: int = 20) -> Tensor:
    """Normalises rows and columns in turn: (..., n, n) to nearly doubly stochastic.

    Args:
        log_scores: logarithms of positive matrices, of any size.
        rounds: of one row and one column normalisation each, at least 1.
    """
    log_scores = log_scores.log_softmax(-1).log_softmax(-2)
    # From here on plain division is as safe as logarithms, and several times as fast: columns sum
    # to one, and each row keeps an entry of at least 1/n², since rows summed to one before.
    # The matrices go to the last axis, where sums over rows and columns are vectorised.
    n = log_scores.shape[-1]
    scores = log_scores.exp().reshape(-1, n * n).T.reshape(n, n, -1)
    for _ in range(rounds - 1):
        scores = scores / scores.sum(1, keepdim=True)
        scores = scores / scores.sum(0, keepdim=True)
    return scores.flatten(0, 1).T.reshape(log_scores.shape)


@functools.cache
def _permutations(n: int) -> Tensor:
    return torch.eye(n)[torch.tensor(list(itertools.permutations(range(n))))]


def best_permutation(scores: Tensor) -> Tensor:
    """The permutation matrices (..., n, n) with the largest total score: the assignment problem.

    Args:
        scores: (..., n, n).
    """
    n = scores.shape[-1]
    if n <= ENUMERATED:
        every = _permutations(n).to(scores)
        return every[(scores.flatten(-2) @ every.flatten(1).T).argmax(-1)]
    flat = scores.detach().reshape(-1, n, n).cpu().numpy()
    columns = torch.tensor(
        [linear_sum_assignment(each, maximize=True)[1].tolist() for each in flat]
    )
    return F.one_hot(columns, n).to(scores).view(scores.shape)


def dag_of(order: Tensor, edges: Tensor) -> Tensor:
    """G = U ⊙ (Pᵀ M P) with M the strict upper triangle: acyclic whatever U is."""
    M = torch.ones_like(edges[..., :, :]).triu(1)
    return edges * (order.mT @ M @ order)


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise."""
    return -torch.empty_like(like).exponential_().log()


class DagSampler(nn.Module):
    """Draws a graph for each context, with straight-through gradients.

    1. Order: log α = logsigmoid(net(c)), Gumbel noise, temperature; the hard P solves the
       assignment problem on the noisy scores, the soft one is their Sinkhorn normalisation.
    2. Edges: hard Gumbel-softmax over n × n × 2 logits, class 0 being "present".
    3. ``G = U ⊙ (Pᵀ M P)``.

    Args:
        replicas: R.
        context: length of a context vector.
        agents: n.
        hidden: width of both nets.
        edge_net: ``mlp``; or ``deepset``, which averages its hidden layer over the *batch*, so that
            all samples of a batch share their edge probabilities, as the official code does in the
            coordination game (a slip, we think).
        order: ``learned``, or ``identity`` (the official choice in SMAC).
        noise: scale of the order's Gumbel noise.
        temperature: of both relaxations, positive.
        rounds: of Sinkhorn's normalisation.

    Raises:
        UserError: a knob is out of its range.
    """

    @checked
    def __init__(
        self,
        replicas: int,
        context: int,
        agents: int,
        hidden: Count = 64,
        edge_net: Literal["mlp", "deepset"] = "mlp",
        order: Literal["learned", "identity"] = "learned",
        noise: NonNegative = 1.0,
        temperature: Positive = 1.0,
        rounds: Natural = 20,
    ) -> None:
        super().__init__()
        self.agents, self.edge_net, self.order = agents, edge_net, order
        self.noise, self.temperature, self.rounds = noise, temperature, rounds
        self.order_in = Linear(replicas, context, hidden)
        self.order_out = Linear(replicas, hidden, agents * agents, gain=1.0)
        self.edge_in = Linear(replicas, context, hidden)
        self.edge_out = Linear(replicas, hidden, agents * agents * 2, gain=1.0)

    def forward(self, context: Tensor) -> DagSample:
        """Draws graphs for contexts (R, B, C), without gradients: what acting needs."""
        with torch.no_grad():
            log_alpha, logits = self._scores(context)
            noise = (self.noise * gumbel(log_alpha), gumbel(logits))
            P = best_permutation(log_alpha + noise[0])
            if self.order == "identity":
                P = torch.eye(self.agents).to(P).expand_as(P)
            U = ((logits + noise[1]).argmax(-1) == 0).to(P)
        return DagSample(dag_of(P, U), P, U, noise)

    def relax(self, context: Tensor, sample: DagSample) -> Tensor:
        """The same graphs with a gradient: hard forwards, soft (at the same noise) backwards.

        Args:
            context: (R, B, C), as the sample was drawn for.
            sample: from `forward`, perhaps of older weights.

        Returns:
            G (R, B, n, n), equal to ``sample.graph``.
        """
        log_alpha, logits = self._scores(context)
        P = sample.order
        if self.order == "learned":
            P_soft = sinkhorn((log_alpha + sample.noise[0]) / self.temperature, self.rounds)
            P = P + (P_soft - P_soft.detach())
        U_soft = ((logits + sample.noise[1]) / self.temperature).softmax(-1)[..., 0]
        return dag_of(P, sample.edges + (U_soft - U_soft.detach()))

    def _scores(self, context: Tensor) -> tuple[Tensor, Tensor]:
        n, lead = self.agents, context.shape[:-1]
        log_alpha = F.logsigmoid(self.order_out(self.order_in(context).relu())).view(*lead, n, n)
        features = self.edge_in(context).relu()
        if self.edge_net == "deepset":
            features = features.mean(1, keepdim=True).expand_as(features)
        return log_alpha, self.edge_out(features).view(*lead, n, n, 2)
