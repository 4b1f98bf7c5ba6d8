"""AdjointDPM: gradients through a diffusion sampler (Pan et al., ICLR 2024, arXiv 2307.10711).

A sample x_0 is the end of the probability-flow ODE that starts at noise x_T. Its gradient with
respect to the noise, a condition or the network's weights is the end of another ODE, solved
backwards, so that no activation of a step is kept. Both are solved after a change of variables
(`RhoFlow`) that takes the linear, stiff part out.

Noise that makes a sample land on a target, in a plain loop:

>>> import torch
>>> from repro.methods.adjoint_dpm import sample, time_grid
>>> from repro.toolbox.diffusion import ScaledLinear
>>> from repro.toolbox.exact_scores import PointMixture, noise_in
>>> process = ScaledLinear()
>>> law = PointMixture.uniform(torch.tensor([[0.9, 0.9], [-0.9, -0.9]]), variance=0.01)
>>> predict = noise_in(law, process)
>>> times = time_grid(process, steps=10)
>>> x_T = torch.full((1, 2), 0.2).requires_grad_()
>>> target = torch.tensor([[-0.9, -0.9]])
>>> for _ in range(10):
...     loss = (sample(predict, x_T, times, process) - target).square().sum()
...     (g,) = torch.autograd.grad(loss, x_T)
...     x_T = (x_T - 0.1 * g / g.norm()).detach().requires_grad_()
>>> bool(loss < 0.01)
True

Its gradient, against that of backpropagation through all steps:

>>> x_T = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
>>> gradients = []
>>> for way in ("adjoint", "naive"):
...     loss = sample(predict, x_T, time_grid(process, 100), process, gradient=way).square().sum()
...     gradients += torch.autograd.grad(loss, x_T)
>>> bool((gradients[0] - gradients[1]).norm() < 0.2 * gradients[1].norm())
True
"""

from repro.methods.adjoint_dpm.adjoint import Gradient, States, integrate_adjoint, solve
from repro.methods.adjoint_dpm.flow import (
    FLOWS,
    Flow,
    Form,
    Grid,
    RhoFlow,
    TimeFlow,
    sample,
    time_grid,
)
from repro.methods.adjoint_dpm.solvers import OneStep, Solver, adams_bashforth, walk
from repro.methods.adjoint_dpm.ways import WAYS, Pulled, Sampling, Way

__all__ = [
    "FLOWS",
    "WAYS",
    "Flow",
    "Form",
    "Gradient",
    "Grid",
    "OneStep",
    "Pulled",
    "RhoFlow",
    "Sampling",
    "Solver",
    "States",
    "TimeFlow",
    "Way",
    "adams_bashforth",
    "integrate_adjoint",
    "sample",
    "solve",
    "time_grid",
    "walk",
]
