"""Deep networks below boosted units: what the last layer of a trained model reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.errors import UserError


@torch.no_grad()
def penultimate_features(model: nn.Module, x: Tensor, chunk: int = 1024) -> Tensor:
    """Inputs (N, D) of the model's last linear layer, in evaluation mode.

    Args:
        model: any model whose output comes from an `nn.Linear`.
        x: inputs (N, …), on the model's device.
        chunk: how many go through the model at once.

    Raises:
        UserError: the model has no linear layer.
    """
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError("gbnn: the backbone has no linear layer whose inputs could be features.")
    features: list[Tensor] = []
    hook = linear[-1].register_forward_hook(lambda _module, inputs, _: features.append(inputs[0]))
    training = model.training
    try:
        model.eval()
        for part in x.split(chunk):
            model(part)
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(features).flatten(1)
