"""Gradient-based post-training quantisation: rounding that is learned on a few examples.

A trained digit reader is rounded to 2 bits a weight. Run it: ``python examples/gradient_ptq.py``.
"""

import copy
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from repro.methods.gradient_ptq import PostTrainingQuantization, Recipe

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


print(f"float: {accuracy(trained):.1%} of the test digits are read right")
recipes: dict[str, dict[str, Any]] = {
    "round to nearest": {"rounding": "nearest"},
    "learned rounding": {"variable": "round_sigmoid", "lr": 1e-2, "iterations": 300},
}
for name, settings in recipes.items():
    model = copy.deepcopy(trained)
    reports = list(PostTrainingQuantization(model, Recipe(bits=2, **settings), x[:256]))
    print(f"{name}, 2 bits: {accuracy(model):.1%}, last layer's error {reports[-1].error:.3f}")
