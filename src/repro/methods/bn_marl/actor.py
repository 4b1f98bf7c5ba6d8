"""The actor of a Bayesian-network policy: one trunk for all agents, one head per agent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.bn_marl.layers import Trunk
from repro.methods.bn_marl.sampler import gumbel


class BayesNetActor(nn.Module):
    """π(a | o, G) = Π_i π^i(a^i | o^i, a^P(i)) with neural conditionals.

    The head of agent i sees the trunk's features of its own observation and the one-hot actions
    of all agents (and, if so wished, their observations), masked by column i of G. Gradients reach
    G through that mask; the actions themselves carry none.

    Args:
        replicas: R independent actors.
        agents: n.
        observation: length of an observation.
        actions: per agent.
        hidden: width of the trunk.
        share_observations: parents also show their observations (the paper's Aloha).
    """

    def __init__(
        self,
        replicas: int,
        agents: int,
        observation: int,
        actions: int,
        hidden: int = 64,
        share_observations: bool = False,
    ) -> None:
        super().__init__()
        self.agents, self.actions, self.share = agents, actions, share_observations
        self.trunk = Trunk(replicas, observation, hidden)
        shown = actions + (observation if share_observations else 0)
        weight = torch.empty(replicas, agents, hidden + agents * shown, actions)
        for head in weight.flatten(0, 1):
            nn.init.orthogonal_(head, 0.01)
        self.own = nn.Parameter(weight[:, :, :hidden].clone())
        self.parents = nn.Parameter(weight[:, :, hidden:].clone())
        self.bias = nn.Parameter(torch.zeros(replicas, 1, agents, actions))

    def own_logits(self, observations: Tensor) -> Tensor:
        """What the heads make of the observations (R, B, n or 1, o) alone: (R, B, n, A)."""
        features = self.trunk(observations)
        if features.shape[2] == 1:  # all see the same: one pass of the trunk serves all heads
            return torch.einsum("rbh,riha->rbia", features.squeeze(2), self.own) + self.bias
        return torch.einsum("rbih,riha->rbia", features, self.own) + self.bias

    def logits(self, own: Tensor, observations: Tensor, actions: Tensor, G: Tensor) -> Tensor:
        """Logits (R, B, n, A) of all conditionals, given everybody's actions.

        Args:
            own: from `own_logits`.
            observations: (R, B, n or 1, o).
            actions: (R, B, n); agent i reads those of its parents alone.
            G: (R, B, n, n).
        """
        shown = F.one_hot(actions, self.actions).to(own)
        if self.share:
            seen = observations.expand(*shown.shape[:-1], -1)
            shown = torch.cat([shown, seen], -1)
        masked = G.mT[..., None] * shown[:, :, None]  # agent, parent, what it shows
        return own + torch.einsum("rbim,rima->rbia", masked.flatten(-2), self.parents)

    @torch.no_grad()
    def act(self, observations: Tensor, G: Tensor, greedy: bool = False) -> Tensor:
        """Ancestral sampling along G, in parallel: returns actions (R, B, n).

        With its noise fixed, an ancestral sample is the only fixed point of
        ``a ↦ argmax(logits(a) + noise)``. Round k is right for all agents at depth k of the graph
        and below, so n rounds suffice, and no order has to be found first.

        Args:
            observations: (R, B, n or 1, o).
            G: (R, B, n, n), acyclic.
            greedy: take each conditional's most likely action.
        """
        own = self.own_logits(observations)
        noise = torch.zeros_like(own) if greedy else gumbel(own)
        actions = (own + noise).argmax(-1)
        for _ in range(self.agents):
            again = (self.logits(own, observations, actions, G) + noise).argmax(-1)
            if torch.equal(again, actions):
                break
            actions = again
        return actions

    def evaluate(
        self, observations: Tensor, actions: Tensor, G: Tensor, parents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each agent's conditional, both (R, B, n).

        Args:
            observations: (R, B, n or 1, o).
            actions: (R, B, n).
            G: (R, B, n, n).
            parents: what children see as their parents' actions; None for `actions`.
        """
        shown = actions if parents is None else parents
        own = self.own_logits(observations)
        log_p = self.logits(own, observations, shown, G).log_softmax(-1)
        chosen = log_p.gather(-1, actions[..., None]).squeeze(-1)
        return chosen, -(log_p.exp() * log_p).sum(-1)
