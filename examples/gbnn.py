"""Gradient-boosted neural networks: one hidden layer, trained a few units at a time.

The network can be cut to fewer units afterwards, without training. Run it:
``python examples/gbnn.py``.
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

from repro.methods.gbnn import GradientBoosting, loss_for

inputs, labels = load_breast_cancer(return_X_y=True)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(scale(inputs))[order], torch.tensor(labels)[order]
train, test = slice(0, 400), slice(400, None)

boosting = GradientBoosting(units=40, per_step=2, shrinkage=0.5, iterations=50)
network = boosting.fit(x[train], y[train], loss_for("classification", classes=2))
for blocks in (20, 5, 1):
    model = network.merge(blocks=blocks)  # an ordinary network
    right = ((model(x[test])[:, 0] > 0) == (y[test] == 1)).double().mean()
    print(f"{2 * blocks} hidden units: {right:.1%} of the test cases")
