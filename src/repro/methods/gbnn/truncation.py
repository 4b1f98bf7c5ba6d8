"""Switching off hidden units of any network with one hidden layer, in several orders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Known, checked

ORDERS = ("first", "random", "norm")


def layers(model: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """Hidden and output layer of a network with one hidden layer; None for any other model."""
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    others = [p for p in model.modules() if not isinstance(p, nn.Linear) and _weights(p)]
    if len(linear) != 2 or others or linear[0].out_features != linear[1].in_features:
        return None
    return linear[0], linear[1]


@checked
def order_units(
    model: nn.Module, order: Annotated[str, Known(ORDERS)], generator: torch.Generator
) -> Tensor:
    """All hidden units, those to keep longest first.

    Args:
        model: a network with one hidden layer.
        order: ``first`` (as they stand), ``random``, or ``norm``: the largest ‖v_j‖ · ‖w_j‖
            first, the strong way to order units that were trained together.
        generator: of the random order.
    """
    hidden, output = _layers(model)
    if order == "first":
        return torch.arange(hidden.out_features)
    if order == "random":
        return torch.randperm(hidden.out_features, generator=generator)
    importance = hidden.weight.norm(dim=1) * output.weight.norm(dim=0)
    return importance.argsort(descending=True, stable=True)


@torch.no_grad()
def keep_units(model: nn.Module, units: Tensor) -> nn.Module:
    """A smaller copy of a network that has only the hidden units with these indices."""
    hidden, output = _layers(model)
    smaller = copy.deepcopy(model)
    new_hidden, new_output = _layers(smaller)
    new_hidden.weight = nn.Parameter(hidden.weight[units].clone())
    new_hidden.bias = nn.Parameter(hidden.bias[units].clone())
    new_output.weight = nn.Parameter(output.weight[:, units].clone())
    new_hidden.out_features = new_output.in_features = len(units)
    return smaller


def refit_output(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    alpha: float = 1e-2,
    iterations: int = 100,
) -> nn.Module:
    """A copy whose output layer is trained anew on its hidden units, which stay as they are.

    Args:
        model: a network with one hidden layer.
        x: training inputs (N, …).
        loss_of: maps outputs (N, K) to the mean training loss.
        alpha: weight decay, α ‖w‖² / 2N.
        iterations: most L-BFGS steps.
    """
    refitted = copy.deepcopy(model)
    _, output = _layers(refitted)
    with torch.no_grad():
        features: list[Tensor] = []
        hook = output.register_forward_hook(lambda _module, inputs, _: features.append(inputs[0]))
        model_out = refitted(x)
        hook.remove()
    h_NJ, (K, J) = features[0], output.weight.shape

    @torch.enable_grad()
    def objective(p: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        p_P = torch.from_numpy(p).to(h_NJ).requires_grad_()
        weight_KJ = p_P[: K * J].view(K, J)
        outputs = (h_NJ @ weight_KJ.T + p_P[K * J :]).view_as(model_out)
        value = loss_of(outputs) + alpha / (2 * len(x)) * weight_KJ.square().sum()
        (gradient_P,) = torch.autograd.grad(value, p_P)
        return value.item(), gradient_P.double().cpu().numpy()

    start_P = torch.cat([output.weight.detach().flatten(), output.bias.detach()]).double()
    options = {"maxiter": iterations, "gtol": 0.0}
    found = minimize(objective, start_P.cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    p_P = torch.from_numpy(found.x).to(output.weight)
    with torch.no_grad():
        output.weight.copy_(p_P[: K * J].view(K, J))
        output.bias.copy_(p_P[K * J :])
    return refitted


def _layers(model: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    found = layers(model)
    if found is None:
        raise UserError("Only networks with exactly one hidden layer can be cut unit by unit.")
    return found


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))
