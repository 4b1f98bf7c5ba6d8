"""Pruning by explaining: remove the hidden units that explanations of few references do not need.

Half of a network's units go, by relevance, by weights and at random. Run it:
``python examples/lrp_pruning.py``.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from repro.methods.lrp_pruning import FilterPruning, Random, Relevance, Weight
from repro.toolbox.dependency_graph import trace
from repro.toolbox.lrp import Epsilon

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(1797)
x, y = torch.tensor(images, dtype=torch.float32)[order] / 8 - 1, torch.tensor(labels)[order]
model = nn.Sequential(
    nn.Linear(64, 100), nn.ReLU(), nn.Dropout(0.5), nn.Linear(100, 100), nn.ReLU(),
    nn.Linear(100, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(300):
    batch = torch.randint(1200, (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
model.eval()


def accuracy(net: nn.Module) -> float:
    """On the last 597 digits."""
    return 100 * float((net(x[1200:]).argmax(1) == y[1200:]).float().mean())


print(f"all 200 units: {accuracy(model):.1f} % right")
references, graph = [(x[:100], y[:100])], trace(model, x[:2])
rule = Epsilon(eps=0.1, relative=True)
for name, criterion in (
    ("relevance", Relevance(conv=rule, linear=rule)), ("weights", Weight()), ("chance", Random())
):  # fmt: skip
    pruned, pruning = copy.deepcopy(model), FilterPruning(criterion)
    pruning.begin(pruned)
    pruning.prune(pruned, references, count=100)
    smaller = pruning.shrunk(pruned, graph).eval()
    parameters = sum(each.numel() for each in smaller.parameters())
    print(f"100 removed by {name}: {accuracy(pruned):.1f} %, {parameters} parameters are left")
