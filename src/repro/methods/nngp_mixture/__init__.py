"""Scale mixtures of neural network Gaussian processes (Lee, Yun, Yang, Lee; ICLR 2022).

A wide random network is a Gaussian process, the NNGP. If the variance of its last layer is itself
drawn from a prior, once for the whole network, the limit is a scale mixture of NNGPs: Student's t
process for an inverse gamma prior. One solve of the Gaussian regression serves every prior:

>>> import torch
>>> from repro.methods.nngp_mixture import BurrXII, FixedScale, InverseGamma, NNGPKernel, condition
>>> generator = torch.Generator().manual_seed(0)
>>> x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
>>> y = torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(40, generator=generator)
>>> train, test = slice(0, 20), slice(20, 40)
>>> kernel = NNGPKernel(depth=4, act="relu", w_std=1.4, b_std=0.3)
>>> K, diagonal = kernel.with_diagonals(x[train], x[test])[0], kernel(x[test]).diagonal()
>>> noise = torch.tensor(0.01)
>>> fit = condition(kernel(x[train]), K, diagonal, y[train], noise)
>>> nll = {type(prior).__name__: float(prior.predict(fit).nll(y[test]))
...        for prior in (FixedScale(), InverseGamma(2.0, 2.0), BurrXII(1.0, 1.0))}
>>> nll["InverseGamma"] < nll["FixedScale"]  # the scale of these data is not 1
True
>>> abs(nll["BurrXII"] - nll["InverseGamma"]) < 0.1  # both find out
True

The kernel's scales are trained by gradient descent on the evidence, in a plain loop:

>>> optimizer = torch.optim.Adam(kernel.parameters(), lr=0.01)
>>> losses = []
>>> for _ in range(30):
...     optimizer.zero_grad()
...     K, diagonal = kernel.with_diagonals(x[train], x[train])
...     fit = condition(kernel(x[train]), K, diagonal, y[train], noise)
...     loss = -InverseGamma(2.0, 2.0).log_evidence(fit) / fit.size
...     loss.backward()
...     optimizer.step()
...     losses.append(loss.item())
>>> losses[-1] < losses[0]
True

`SparseProcess` is the variational classifier, `limits` holds finite networks and what they tend to.
"""

from repro.methods.nngp_mixture.evidence import TrainedProcess
from repro.methods.nngp_mixture.kernels import ACTIVATIONS, NNGPKernel
from repro.methods.nngp_mixture.limits import (
    LastLayerDescent,
    WideNetworks,
    draw_features,
    heavy_tailed_readout,
    mixture_limit,
    trained_limit,
)
from repro.methods.nngp_mixture.priors import (
    BurrXII,
    FixedScale,
    InverseGamma,
    LikeliestScale,
    MixturePredictive,
    Predictive,
    Sampled,
    ScalePrior,
    StudentPredictive,
    burr_laws,
    fixed_scales,
    sample_process,
)
from repro.methods.nngp_mixture.regression import Fit, condition, condition_all, condition_kernel
from repro.methods.nngp_mixture.variational import SparseProcess, inverse_gamma_kl

__all__ = [
    "ACTIVATIONS",
    "BurrXII",
    "Fit",
    "FixedScale",
    "InverseGamma",
    "LastLayerDescent",
    "LikeliestScale",
    "MixturePredictive",
    "NNGPKernel",
    "Predictive",
    "Sampled",
    "ScalePrior",
    "SparseProcess",
    "StudentPredictive",
    "TrainedProcess",
    "WideNetworks",
    "burr_laws",
    "condition",
    "condition_all",
    "condition_kernel",
    "draw_features",
    "fixed_scales",
    "heavy_tailed_readout",
    "inverse_gamma_kl",
    "mixture_limit",
    "sample_process",
    "trained_limit",
]
