"""The inner learner: networks of J logistic units, many of them fitted at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from repro.toolbox.linear_algebra.lbfgs import minimise


class Blocks(NamedTuple):
    """B networks D → J logistic → K linear.

    Attributes:
        input: weights of the hidden units (B, D, J).
        hidden_bias: their biases (B, J).
        output: weights of the outputs (B, J, K).
        output_bias: their biases (B, K).
    """

    input: Tensor
    hidden_bias: Tensor
    output: Tensor
    output_bias: Tensor

    def __call__(self, x_BND: Tensor) -> Tensor:
        """Outputs (B, N, K); the inputs may also be (1, N, D), the same for all."""
        hidden_BNJ = torch.sigmoid(x_BND @ self.input + self.hidden_bias[:, None])
        return hidden_BNJ @ self.output + self.output_bias[:, None]


def random_starts(rows: int, D: int, J: int, K: int, generator: torch.Generator) -> Tensor:
    """Starting points for `fit_blocks`, (rows, P), float64.

    Glorot's uniform range for logistic units, ±√(2 / (fan-in + fan-out)), biases included, as
    scikit-learn does it.
    """
    limits = [math.sqrt(2 / (D + J))] * (J * (D + 1)) + [math.sqrt(2 / (J + K))] * (K * (J + 1))
    unit = torch.rand(rows, len(limits), dtype=torch.float64, generator=generator)
    return (2 * unit - 1) * torch.tensor(limits, dtype=torch.float64)


def fit_blocks(
    x_BND: Tensor, target_BNK: Tensor, start_BP: Tensor, J: int, alpha: float, iterations: int
) -> tuple[Blocks, Tensor]:
    """Fits B networks of J units by least squares, all in one L-BFGS.

    Minimises ½ Σ_k mean_n (h(x) − r)² + α ‖weights‖² / 2n for every row (biases are free).

    Args:
        x_BND: inputs of each row, or (1, N, D) for all.
        target_BNK: what to fit; its rows may be fewer if they are broadcast to B.
        start_BP: from `random_starts`, P = J (D + 1) + K (J + 1).
        J: hidden units.
        alpha: weight decay.
        iterations: most steps of L-BFGS.

    Returns:
        The networks, and the value of the objective of each row (B,).
    """
    N, D = x_BND.shape[1:]
    B, K = len(start_BP), target_BNK.shape[2]
    # Points come last and biases are the weights of a row of ones: few products, long rows. Inputs
    # that all networks share make one product of matrices out of B.
    x_BEN = torch.cat([x_BND, torch.ones_like(x_BND[..., :1])], 2).mT.contiguous()
    x_EN = x_BEN[0] if len(x_BEN) == 1 else x_BEN
    x_NE = x_EN.mT.contiguous()
    target_BKN = target_BNK.mT.contiguous()
    hidden = J * (D + 1)

    def unpack(p_BP: Tensor) -> tuple[Tensor, Tensor]:
        return p_BP[:, :hidden].view(B, J, D + 1), p_BP[:, hidden:].view(B, K, J + 1)

    penalty_BP = start_BP.new_full(start_BP.shape, alpha / N)
    for part in unpack(penalty_BP):
        part[:, :, -1] = 0

    def objective(p_BP: Tensor) -> tuple[Tensor, Tensor]:
        V_BJE, W_BKI = unpack(p_BP)
        W_BKJ = W_BKI[:, :, :-1]
        h_BJN = torch.sigmoid(V_BJE @ x_EN)
        error_BKN = torch.baddbmm(W_BKI[:, :, -1:], W_BKJ, h_BJN) - target_BKN
        decayed_BP = penalty_BP * p_BP
        value_B = 0.5 * (error_BKN.square().sum((1, 2)) / N + (decayed_BP * p_BP).sum(1))
        error_BKN = error_BKN / N
        d_hidden_BJN = (W_BKJ.mT @ error_BKN) * h_BJN * (1 - h_BJN)
        d_V_BJE = d_hidden_BJN @ x_NE
        d_W_BKI = torch.cat([error_BKN @ h_BJN.mT, error_BKN.sum(2, keepdim=True)], 2)
        return value_B, torch.cat([d_V_BJE.flatten(1), d_W_BKI.flatten(1)], 1) + decayed_BP

    p_BP, value_B = minimise(objective, start_BP, iterations)
    V_BEJ, W_BIK = (part.mT for part in unpack(p_BP))
    return Blocks(V_BEJ[:, :-1], V_BEJ[:, -1], W_BIK[:, :-1], W_BIK[:, -1]), value_B
