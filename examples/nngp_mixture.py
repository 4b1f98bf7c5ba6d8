"""Scale mixtures of NNGPs: a Gaussian process that finds out the scale of what it predicts.

One solve serves every prior of the scale. Run it: ``python examples/nngp_mixture.py``.
"""

import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

from repro.methods.nngp_mixture import BurrXII, FixedScale, InverseGamma, NNGPKernel, condition

inputs, targets = load_diabetes(return_X_y=True)
x, y = torch.tensor(scale(inputs)), torch.tensor(scale(targets))
train, test = slice(0, 300), slice(300, None)
kernel = NNGPKernel(depth=4, act="relu", w_std=0.5, b_std=0.1)

with torch.no_grad():
    crossed, diagonal = kernel.with_diagonals(x[train], x[test])[0], kernel(x[test]).diagonal()
    fit = condition(kernel(x[train]), crossed, diagonal, y[train], torch.tensor(0.01))
    for prior in (FixedScale(), InverseGamma(2.0, 2.0), BurrXII(1.0, 1.0)):
        nll = prior.predict(fit).nll(y[test])
        print(f"{type(prior).__name__}: {nll:.3f} nats a test patient")
