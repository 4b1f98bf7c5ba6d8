"""The theory's quantities, measured on fresh networks: gain, gradient norm, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.methods.scalelong.scaling import SkipScaling, coefficients, forward_gain
from repro.models.parts.skips import PlainSkips
from repro.toolbox.norms import gradient_norm

STREAM = 4  # of the seeds of fresh networks
STEP = 1e-2  # length of a perturbation per entry: small against a unit-variance input


def at_initialisation(
    model: nn.Module,
    method: SkipScaling,
    x: Tensor,
    time_B: Tensor,
    noise: Tensor,
    probes: Mapping[str, Any],
    seed: int,
) -> dict[str, float]:
    """Means over fresh networks of each depth, with this method's scaler.

    * ``gain``: ||h_0||² / ||z_0||² over a batch; ``gain_over_theory`` divides it by 1 + sum κ².
    * ``grad_norm``: of the loss, over all parameters but the scaler's.
    * ``grad_ratio``: the gradient norm of the same networks without scaling over that.
    * ``sensitivity``: see `sensitivity`.

    Args:
        model: of the kind to be probed; has ``with_skips``.
        method: the scaling.
        x: noised examples (B, …).
        time_B: their times, as the network takes them.
        noise: what is to be predicted, like ``x``.
        probes: ``depths`` and ``networks``.
        seed: decides the fresh weights, which are the same for every method.

    Raises:
        UserError: the model cannot be built at another depth.
    """
    if not hasattr(model, "with_skips"):
        raise UserError(
            f"module.probes.depths: {type(model).__name__} has no theory to be compared with: "
            "choose model=skip_mlp or module.probes.depths=[]."
        )
    measured = {}
    for depth in probes["depths"]:
        # Tests run in inference mode, in which nothing has a gradient.
        with torch.inference_mode(False), torch.enable_grad():
            batch = x.clone(), time_B.clone(), noise.clone()
            found = [
                _quantities(model, method, batch, depth, (STREAM, seed, depth, number))
                for number in range(probes["networks"])
            ]
        gain, grad, sensitive, reference = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        prefix = f"init/n{depth}"
        measured[f"{prefix}/gain"] = gain
        measured[f"{prefix}/grad_norm"] = grad
        measured[f"{prefix}/grad_ratio"] = reference / grad
        measured[f"{prefix}/sensitivity"] = sensitive
        if method.kind != "ls":
            kappas = coefficients(
                method.kind,
                depth,
                method.knobs["kappa"],
                method.knobs["const"],
                bool(method.knobs["reverse"]),
            )
            measured[f"{prefix}/gain_over_theory"] = gain / forward_gain(kappas)
    return measured


@torch.no_grad()
def sensitivity(network: nn.Module, x: Tensor, time_B: Tensor, generator: torch.Generator) -> float:
    """Mean of ``||F(x + d) - F(x)|| / ||d||`` for small random perturbations d.

    Args:
        network: F, of noised examples and times.
        x: noised examples (B, …).
        time_B: their times, as the network takes them.
        generator: of the perturbations, on any device.
    """
    d = STEP * torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
    change = network(x + d, time_B) - network(x, time_B)
    return float((change.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)).mean())


def _quantities(
    model: Any,
    method: SkipScaling,
    batch: tuple[Tensor, Tensor, Tensor],
    depth: int,
    key: tuple[int, ...],
) -> list[float]:
    """Gain, gradient norm and sensitivity of one fresh network; gradient norm without scaling."""
    x, time_B, noise = batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(*key).initial_seed() >> 1)
        network = model.with_skips(depth).to(x.device)
        method.attach(network)
    with torch.no_grad():
        z = network.embed(x, time_B)
        gain = float(network.body(z).square().sum() / z.square().sum())
    sensitive = sensitivity(network, x, time_B, generator_for(*key, 1))
    own = reference = _gradient(network, x, time_B, noise)
    if method.kind != "none":
        network.scaler = PlainSkips()
        reference = _gradient(network, x, time_B, noise)
    return [gain, own, sensitive, reference]


def _gradient(network: nn.Module, x: Tensor, time_B: Tensor, noise: Tensor) -> float:
    """The norm of the loss's gradient at the backbone's parameters."""
    network.zero_grad()
    (network(x, time_B) - noise).square().mean().backward()
    backbone = [p for name, p in network.named_parameters() if not name.startswith("scaler.")]
    return float(gradient_norm(backbone))
