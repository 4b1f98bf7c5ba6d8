"""Which parameters must be removed together, and removing them: structured pruning of any module.

A channel that one layer writes is read by others: whoever removes it has to remove rows here and
columns there (and, where a sum joins two branches, rows of both). `trace` follows every channel
through the graph of operations that `torch.export` records, and gathers what belongs together into
groups; `remove` cuts channels out of a copy.

>>> import torch
>>> from torch import nn
>>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
>>> graph = trace(net, torch.zeros(1, 3, 8, 8))
>>> [(group.name, group.size, group.prunable) for group in graph.groups]
[('0', 8, True), ('3', 4, False)]
>>> [(m.name, m.dim, m.role) for m in graph.groups[0].members]  # doctest: +NORMALIZE_WHITESPACE
[('0.weight', 0, 'producer'), ('0.bias', 0, 'producer'), ('1.weight', 0, 'norm'),
 ('1.bias', 0, 'norm'), ('3.weight', 1, 'consumer')]
>>> smaller = remove(net, {graph.groups[0]: [0, 2, 5]}, graph)
>>> smaller[0], smaller[3]  # doctest: +NORMALIZE_WHITESPACE
(Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1)), Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)))
"""

from repro.toolbox.dependency_graph.graph import DependencyGraph, Group, Member, running, trace
from repro.toolbox.dependency_graph.removal import cut, remove, silence

__all__ = ["DependencyGraph", "Group", "Member", "cut", "remove", "running", "silence", "trace"]
