"""Score-function (REINFORCE) gradients: of an expected cost, through what was drawn.

Williams 1992, "Simple statistical gradient-following algorithms": for x ~ p(x; θ),
``∇ E[c(x)] = E[c(x) ∇ log p(x; θ)]``, and any baseline that does not depend on x leaves that be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.knobs import Fraction, checked


def surrogate(log_prob_B: Tensor, cost_B: Tensor) -> Tensor:
    """What to minimise so that the expected cost falls: ``mean_b c_b log p_b``, c held fixed.

    Its value means nothing; its gradient is the estimate of the expected cost's.

    Args:
        log_prob_B: log probability (density) of all that was drawn for each example.
        cost_B: what it cost, less a baseline; a reward with its sign turned.
    """
    return (cost_B.detach() * log_prob_B).mean()


class MovingBaseline(nn.Module):
    """An exponential moving average of batches' means, from before the present batch.

    For the first batch it is that batch's own mean.

    Args:
        decay: of the average, for each batch.
    """

    average: Tensor
    batches: Tensor

    @checked
    def __init__(self, decay: Fraction = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, value_B: Tensor) -> Tensor:
        """Returns the baseline for these values, a number, and lets them move it."""
        mean = value_B.mean()
        baseline = torch.where(self.batches > 0, self.average, mean)
        self.average = self.decay * baseline + (1 - self.decay) * mean
        self.batches += 1
        return baseline
