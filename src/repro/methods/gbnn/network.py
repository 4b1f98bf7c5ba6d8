"""The boosted network: blocks of hidden units that add up, and the ordinary network they make."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods.gbnn.block import Block


class BoostedNetwork(nn.Module):
    """F(x) = F_0 + Σ_t η ρ_t h_t(x), with room for T blocks of J units.

    The buffers exist from the start, filled with zeros, so that a checkpoint has the same shape
    at every stage.

    Attributes:
        constant: F_0 (K,).
        input: weights of the hidden units (T, D, J).
        hidden_bias: their biases (T, J).
        output: output weights (T, J, K), not yet multiplied with ``factor``.
        output_bias: output biases (T, K), likewise.
        factor: η ρ_t (T,).
        trained: how many blocks are trained, ().

    Args:
        inputs: D.
        outputs: K.
        blocks: T.
        per_step: J.
        output_scale: m of the loss: `merge` multiplies its output layer with it.
    """

    constant: Tensor
    input: Tensor
    hidden_bias: Tensor
    output: Tensor
    output_bias: Tensor
    factor: Tensor
    trained: Tensor

    def __init__(
        self, inputs: int, outputs: int, blocks: int, per_step: int, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        T, D, J, K = blocks, inputs, per_step, outputs
        shapes = {
            "constant": (K,),
            "input": (T, D, J),
            "hidden_bias": (T, J),
            "output": (T, J, K),
            "output_bias": (T, K),
            "factor": (T,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("trained", torch.tensor(0))
        self.blocks, self.per_step, self.output_scale = blocks, per_step, output_scale

    def add(self, block: Block) -> None:
        """Appends a fitted block; its ``factor`` is zero until it is set."""
        t = int(self.trained)
        self.input[t] = block.input
        self.hidden_bias[t] = block.hidden_bias
        self.output[t] = block.output
        self.output_bias[t] = block.output_bias
        self.trained += 1

    def contribution(self, t: int, x_ND: Tensor) -> Tensor:
        """h_t(x) (N, K), without its factor."""
        hidden_NJ = torch.sigmoid(x_ND @ self.input[t] + self.hidden_bias[t])
        return hidden_NJ @ self.output[t] + self.output_bias[t]

    def forward(self, x: Tensor, blocks: int | None = None) -> Tensor:
        """Scores (N, K) of inputs (N, …) by the first ``blocks`` blocks, block by block.

        The sum runs in the order of training, so that the scores of a resumed training equal
        those of one that was never interrupted, bit for bit.
        """
        x_ND = x.double().flatten(1)
        scores_NK = self.constant.expand(len(x), -1)
        for t in range(self._count(blocks)):
            scores_NK = scores_NK + self.factor[t] * self.contribution(t, x_ND)
        return scores_NK

    def merge(self, blocks: int | None = None) -> nn.Sequential:
        """The ordinary network with one hidden layer that equals the first ``blocks`` blocks.

        Switching off the last units also takes back what their blocks added to the output bias:
        m (F_0 + Σ_{t ≤ blocks} η ρ_t b_t). The outputs are m F: logits, or the prediction.

        Returns:
            ``Sequential(Flatten, Linear, Sigmoid, Linear)`` in float64 with ``blocks`` · J units.
        """
        T = self._count(blocks)
        D, J, K = self.input.shape[1], self.per_step, len(self.constant)
        hidden = self._empty_linear(D, T * J)
        output = self._empty_linear(T * J, K)
        scaled_TJK = self.factor[:T, None, None] * self.output[:T]
        bias_K = self.constant + self.factor[:T] @ self.output_bias[:T]
        with torch.no_grad():
            hidden.weight.copy_(self.input[:T].mT.reshape(T * J, D))
            hidden.bias.copy_(self.hidden_bias[:T].flatten())
            output.weight.copy_(self.output_scale * scaled_TJK.reshape(T * J, K).T)
            output.bias.copy_(self.output_scale * bias_K)
        return nn.Sequential(nn.Flatten(), hidden, nn.Sigmoid(), output)

    def _empty_linear(self, inputs: int, outputs: int) -> nn.Linear:
        # Without initialisation, which would draw from the global random numbers.
        where = {"dtype": torch.float64, "device": self.factor.device}
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, **where)
        return layer

    def _count(self, blocks: int | None) -> int:
        trained = int(self.trained)
        if blocks is None:
            return trained
        if not 0 <= blocks <= trained:
            raise UserError(f"gbnn: {blocks} blocks were asked for, {trained} are trained.")
        return blocks
