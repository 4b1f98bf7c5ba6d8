"""Codebooks and mappings learned jointly: two bits a weight, learned on a few examples.

A trained digit reader is put into four values a layer. Run it: ``python examples/jlcm.py``.
"""

import copy
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from repro.methods.jlcm import CodebookCompression, Recipe

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
trained = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
for _ in range(300):
    batch = torch.randint(1400, (64,))
    optimizer.zero_grad()
    cross_entropy(trained(x[batch]), y[batch]).backward()
    optimizer.step()


def accuracy(model: nn.Module) -> float:
    return (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()


print(f"float: {accuracy(trained):.1%} of the test digits are read right")
recipes: dict[str, dict[str, Any]] = {
    "k-means": {"learner": "start"},
    "natural gradient": {"kernel": "lin"},
    "proximal gradient": {"kernel": "inv"},
}
for name, settings in recipes.items():
    model = copy.deepcopy(trained)
    recipe = Recipe(k=4, iterations=150, mapping_lr=0.5, **settings)
    work = CodebookCompression(model, recipe, x[:256])
    error = [report.error for report in work][-1]
    bits = work.bits()[0] / sum(work.float_weight(layer).numel() for layer in work.layers)
    print(f"{name}, {bits:.2f} bits: {accuracy(model):.1%}, last layer's error {error:.3f}")
