"""GBLM-Pruner: weights go by their size, their inputs and the gradient of the loss.

A trained digit reader loses two of every four weights of its hidden layer, nothing is trained
again. Run it: ``python examples/gblm.py``.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from repro.methods.gblm import ScorePruner
from repro.toolbox.pruning import GradientNorms, InputMoments, Pattern, layers_of

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
trained = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
for _ in range(500):
    batch = torch.randint(1400, (64,))
    optimizer.zero_grad()
    cross_entropy(trained(x[batch]), y[batch]).backward()
    optimizer.step()


def accuracy(model: nn.Module) -> float:
    return (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


print(f"dense: {accuracy(trained):.1%} of the test digits are read right")
for kind in ("magnitude", "wanda", "gblm"):
    model = copy.deepcopy(trained)
    layers = layers_of(model)
    with InputMoments(layers) as moments, GradientNorms(model, layers) as gradients:
        for part in torch.arange(128).split(32):  # calibration; each example keeps its gradient
            cross_entropy(model(x[part]), y[part], reduction="sum").backward()
    pruner = ScorePruner(kind)
    for name, layer in layers.items():
        statistics = moments.of(name, gradient=gradients.norm(name))
        layer.weight.data = pruner(layer.weight.data, statistics, Pattern(0.8))
    print(f"{kind}, 80 % pruned: {accuracy(model):.1%}")
