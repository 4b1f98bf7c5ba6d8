"""Gradient-boosted neural networks: one hidden layer, trained a few units at a time.

>>> import torch
>>> from repro.methods.gbnn import GradientBoosting, loss_for
>>> generator = torch.Generator().manual_seed(0)
>>> x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
>>> labels = (x.prod(1) > 0).long()  # exclusive or: no single unit can do it
>>> boosting = GradientBoosting(units=40, per_step=2, shrinkage=0.5, iterations=50)
>>> network = boosting.fit(x, labels, loss_for("classification", classes=2))
>>> model = network.merge()  # an ordinary network: Flatten, Linear, Sigmoid, Linear
>>> model[1].out_features
40
>>> accuracy = ((model(x)[:, 0] > 0) == (labels == 1)).double().mean()
>>> bool(accuracy > 0.95)
True
>>> torch.allclose(model(x), 2 * network(x), atol=1e-9)  # the logit of a pair of classes is 2F
True
>>> network.merge(blocks=5)[1].out_features  # fewer units, a cheaper prediction, no new training
10

`stage` trains one block more; `keep_units` and `refit_output` cut any network of one hidden layer;
`penultimate_features` gives the inputs for boosting on top of a deep network.
"""

from repro.methods.gbnn.block import Block, fit_block, random_starts
from repro.methods.gbnn.boosting import Booster, GradientBoosting, newton_step, stage
from repro.methods.gbnn.features import penultimate_features
from repro.methods.gbnn.losses import BinaryLogistic, Loss, Multinomial, SquaredError, loss_for
from repro.methods.gbnn.network import BoostedNetwork
from repro.methods.gbnn.truncation import ORDERS, keep_units, layers, order_units, refit_output

__all__ = [
    "ORDERS",
    "BinaryLogistic",
    "Block",
    "BoostedNetwork",
    "Booster",
    "GradientBoosting",
    "Loss",
    "Multinomial",
    "SquaredError",
    "fit_block",
    "keep_units",
    "layers",
    "loss_for",
    "newton_step",
    "order_units",
    "penultimate_features",
    "random_starts",
    "refit_output",
    "stage",
]
