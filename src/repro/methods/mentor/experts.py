"""A top-k gated mixture of experts as a layer, all experts computed at once.

Shape suffixes: B samples, N experts, D inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Fraction, checked

Routing = Literal["top_k", "random", "dense"]
TINY = 1e-9  # of the renormalisation, and the smallest gate whose entropy has a slope


class StackedLinear(nn.Module):
    """N linear layers side by side, as `torch.nn.Linear` each.

    Args:
        count: N.
        inputs: D.
        outputs: O.
    """

    @checked
    def __init__(self, count: Count, inputs: Count, outputs: Count) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(count, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, each layer its own, and no biases."""
        for each in self.weight:
            nn.init.orthogonal_(each)
        nn.init.zeros_(self.bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Maps inputs (N, B, D), or (B, D) that all layers share, to (N, B, O)."""
        if x.dim() == 2:
            y = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
            return y.unflatten(1, self.bias.shape).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class TopKMoE(nn.Module):
    """``y = Σ_{i in top-k} g_i E_i(x) / (Σ_{top-k} g_i + 1e-9)``, ``g`` a softmax.

    Experts are D → hidden → O with a ReLU, the gate is D → gate_hidden → N with a ReLU and dropout.
    The `gates` of the last input are kept for whoever asks.

    Args:
        inputs: D.
        outputs: O.
        experts: N.
        top_k: experts that answer a sample.
        hidden: width of an expert.
        gate_hidden: width of the gate.
        dropout: of the gate's hidden units, in training only.
        routing: ``top_k``; ``random`` hands the k gates on to k experts drawn anew for each sample;
            ``dense`` uses all experts.

    Raises:
        UserError: fewer experts than ``top_k``.
    """

    @checked
    def __init__(
        self,
        inputs: Count,
        outputs: Count,
        experts: Count = 16,
        top_k: Count = 4,
        hidden: Count = 256,
        gate_hidden: Count = 256,
        dropout: Fraction = 0.1,
        routing: Routing = "top_k",
    ) -> None:
        super().__init__()
        if top_k > experts:
            raise UserError(f"TopKMoE.top_k={top_k} is more than its experts={experts}.")
        self.top_k, self.routing = top_k, routing
        self.experts = nn.Sequential(
            StackedLinear(experts, inputs, hidden),
            nn.ReLU(),
            StackedLinear(experts, hidden, outputs),
        )
        self.gate = nn.Sequential(
            nn.Linear(inputs, gate_hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(gate_hidden, experts),
        )
        self.gates: Tensor | None = None  # (B, N) of the last input, before the choice

    def __getstate__(self) -> dict[str, Any]:
        """All but the gates, whose graph cannot be copied: for copies of the layer."""
        return {**self.__dict__, "gates": None}

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (B, N) of inputs (B, D), and the weights (B, N) of the experts' outputs."""
        gates = self.gate(x).softmax(1)
        if self.routing == "dense":
            return gates, gates
        kept, chosen = gates.topk(self.top_k, dim=1)
        if self.routing == "random":
            chosen = torch.rand_like(gates).topk(self.top_k, dim=1).indices
        kept = kept / (kept.sum(1, keepdim=True) + TINY)
        return gates, torch.zeros_like(gates).scatter(1, chosen, kept)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Maps inputs (B, D) to (B, O); every expert is computed on every sample."""
        self.gates, weights = self.route(x)
        return torch.einsum("bn,nbo->bo", weights, self.experts(x))

    def auxiliary_loss(self) -> Tensor:
        """``Var_i(load_i) + mean_b H(g_b)`` of the last input.

        Loads are shares of counted choices, so that only the entropy has a gradient, as published.
        """
        assert self.gates is not None, "no input yet"
        chosen = self.gates.topk(self.top_k, dim=1).indices
        load = F.one_hot(chosen, self.gates.shape[1]).sum(1).float().mean(0)
        # The slope of −g ln g at g = 0 is infinite, and a gate that is sure underflows to 0.
        entropy = torch.special.entr(self.gates.clamp(min=TINY)).sum(1).mean()
        return load.var() + entropy
