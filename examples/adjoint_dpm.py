"""The gradient of a sample with respect to the noise it came from, without keeping the sampler.

The predictor is the exact one of narrow Gaussians around eight points of a circle, under Stable
Diffusion's schedule. Run it: ``python examples/adjoint_dpm.py``.
"""

import math
from typing import Any

import torch

from repro.methods.adjoint_dpm import sample, time_grid
from repro.toolbox.diffusion import ScaledLinear
from repro.toolbox.exact_scores import PointMixture, noise_in

process = ScaledLinear()
angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
law = PointMixture.uniform(torch.stack([angles.cos(), angles.sin()], dim=1), variance=0.01)
predict = noise_in(law, process)
noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()


def gradient(
    steps: int, form: Any, way: Any, grid: Any = "uniform", solver: Any = "euler"
) -> tuple[torch.Tensor, int]:
    """Of the distance to a target, and the tensors that the way back keeps."""
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        times = time_grid(process, steps, grid)
        x_0 = sample(predict, noise, times, process, form=form, solver=solver, gradient=way)
    loss = (x_0 - torch.tensor([0.0, 1.0])).square().sum()
    return torch.autograd.grad(loss, noise)[0], len(kept)


exact, _ = gradient(60, "rho", "checkpoint", "logsnr", "rk4")
print("steps  form  way         cosine   norm   tensors kept")
for steps in (10, 20, 50):
    for form, way in (
        ("t", "adjoint"),
        ("rho", "adjoint"),
        ("rho", "checkpoint"),
        ("rho", "naive"),
    ):
        g, kept = gradient(steps, form, way)
        cosine = torch.cosine_similarity(g, exact).median()
        norm = (g.norm(dim=1) / exact.norm(dim=1)).median()
        print(f"{steps:5}  {form:4}  {way:10}  {cosine:6.3f}  {norm:5.2f}   {kept:6}")
