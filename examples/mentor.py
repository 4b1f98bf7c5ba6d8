"""MENTOR: what is left of a network that is mixed with its best ancestors, or with a fresh start.

A mixture of experts learns to read digits; the ten best states so far are remembered. Then copies
of it are perturbed, and half of their weights kept. Run it: ``python examples/mentor.py``.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from repro.methods.mentor import (
    TopKMoE,
    TopSet,
    dormant_ratio,
    perturb,
    perturbed_weights,
    recorded_layers,
)

torch.set_num_threads(1)
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
moe = TopKMoE(64, 64, experts=8, top_k=2, hidden=32, gate_hidden=32)
net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), moe, nn.ReLU(), nn.Linear(64, 10))
optimizer, best = torch.optim.Adam(net.parameters(), lr=2e-3), TopSet(capacity=10)


def right(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model.eval()(x[1200:]).argmax(1) == y[1200:]).float().mean())


for _ in range(20):
    net.train()
    for rows in torch.randperm(1200).split(100):
        loss = cross_entropy(net(x[rows]), y[rows]) + 0.002 * moe.auxiliary_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best.offer(-loss.item(), perturbed_weights([net]))
print(f"{right(net):.1%} of the test digits are read right")
print(f"{dormant_ratio(recorded_layers(net), lambda: net(x)):.1%} of the neurons are dormant")
for rule in ("random", "top"):
    perturbed = copy.deepcopy(net)
    perturb(perturbed_weights([perturbed]), alpha=0.5, rule=rule, members=best)
    print(f"half of the weights kept, {rule}: {right(perturbed):.1%}")
