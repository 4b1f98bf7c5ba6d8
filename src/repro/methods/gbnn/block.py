"""The inner learner: a network of J logistic units."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

Array = NDArray[np.float64]


class Block(NamedTuple):
    """A network D → J logistic → K linear.

    Attributes:
        input: weights of the hidden units (D, J).
        hidden_bias: their biases (J,).
        output: weights of the outputs (J, K).
        output_bias: their biases (K,).
    """

    input: Tensor
    hidden_bias: Tensor
    output: Tensor
    output_bias: Tensor

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Outputs (N, K)."""
        hidden_NJ = torch.sigmoid(x_ND @ self.input + self.hidden_bias)
        return hidden_NJ @ self.output + self.output_bias


def random_starts(rows: int, D: int, J: int, K: int, generator: torch.Generator) -> Tensor:
    """Starting points for `fit_block`, (rows, P), float64.

    Glorot's uniform range for logistic units, ±√(2 / (fan-in + fan-out)), biases included, as
    scikit-learn does it.
    """
    limits = [math.sqrt(2 / (D + J))] * (J * (D + 1)) + [math.sqrt(2 / (J + K))] * (K * (J + 1))
    unit = torch.rand(rows, len(limits), dtype=torch.float64, generator=generator)
    return (2 * unit - 1) * torch.tensor(limits, dtype=torch.float64)


def fit_block(
    x_ND: Tensor, target_NK: Tensor, start_P: Tensor, J: int, alpha: float, iterations: int
) -> tuple[Block, float]:
    """Fits J units by least squares, with SciPy's L-BFGS.

    Minimises ½ Σ_k mean_n (h(x) − r)² + α ‖weights‖² / 2n (biases are free). A network this small
    is bound by the cost of calls: NumPy's are a third of PyTorch's, so it is fitted on the CPU.

    Args:
        x_ND: inputs, float64.
        target_NK: what to fit, float64.
        start_P: from `random_starts`, P = J (D + 1) + K (J + 1).
        J: hidden units.
        alpha: weight decay.
        iterations: most steps of L-BFGS.

    Returns:
        The network, on the device of the inputs, and the value of the objective.
    """
    (N, D), K = x_ND.shape, target_NK.shape[1]
    # Points come last and biases are the weights of a row of ones: few products, long rows.
    x_NE: Array = torch.cat([x_ND, torch.ones_like(x_ND[:, :1])], 1).cpu().numpy()
    x_EN = np.ascontiguousarray(x_NE.T)
    target_KN = np.ascontiguousarray(target_NK.cpu().numpy().T)
    hidden = J * (D + 1)

    def unpack(p_P: Array) -> tuple[Array, Array]:
        return p_P[:hidden].reshape(J, D + 1), p_P[hidden:].reshape(K, J + 1)

    penalty_P = np.full(len(start_P), alpha / N)
    for part in unpack(penalty_P):
        part[:, -1] = 0

    def objective(p_P: Array) -> tuple[float, Array]:
        V_JE, W_KI = unpack(p_P)
        W_KJ = W_KI[:, :-1]
        h_JN = expit(V_JE @ x_EN)
        error_KN = W_KJ @ h_JN + W_KI[:, -1:] - target_KN
        decayed_P = penalty_P * p_P
        value = 0.5 * (np.vdot(error_KN, error_KN) / N + decayed_P @ p_P)
        error_KN /= N
        d_V_JE = (W_KJ.T @ error_KN * h_JN * (1 - h_JN)) @ x_NE
        d_W_KI = np.column_stack([error_KN @ h_JN.T, error_KN.sum(1)])
        return float(value), np.concatenate([d_V_JE.ravel(), d_W_KI.ravel()]) + decayed_P

    # As scikit-learn asks for with tol=0: until the value falls no more.
    options = {"maxiter": iterations, "gtol": 0.0}
    found = minimize(objective, start_P.numpy(), jac=True, method="L-BFGS-B", options=options)
    V_EJ, W_IK = (torch.from_numpy(part).to(x_ND.device).mT for part in unpack(found.x))
    return Block(V_EJ[:-1], V_EJ[-1], W_IK[:-1], W_IK[-1]), float(found.fun)
