"""Skeletons by gradient-friendly thinning (Menten et al., ICCV 2023; arXiv 2309.02527).

`Skeletonize` peels binary or soft masks, 2-D or 3-D, down to a thin, centred skeleton of the same
topology, with convolutions, additions, multiplications, simple non-linearities and uniform random
numbers alone, so that a loss may contain it. The same classes serve plain loops and this project's
command.

>>> import torch
>>> from repro.methods.skeleton import Skeletonize, cldice
>>> square = torch.zeros(1, 1, 9, 11)
>>> square[..., 2:7, 2:9] = 1
>>> thin = Skeletonize(num_iter=5, probabilistic=False)
>>> thin(square).nonzero()[:, 2:].tolist()
[[4, 5]]

In a plain loop, here moving logits until the centrelines of two masks agree:

>>> torch.manual_seed(0).initial_seed()
0
>>> target = torch.zeros(1, 1, 16, 16)
>>> target[..., 6:10, 2:14] = 1
>>> logits = torch.zeros_like(target, requires_grad=True)
>>> optimizer = torch.optim.Adam([logits], lr=0.2)
>>> skeletonize = Skeletonize(num_iter=3, beta=0.33, tau=1.0)
>>> for step in range(40):
...     loss = 1 - cldice(logits.sigmoid(), target, skeletonize).mean()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> bool(loss < 0.1)
True
"""

from repro.methods.skeleton.baselines import ClassicalSkeleton, LearnedSkeleton, SoftSkeleton
from repro.methods.skeleton.betti import betti_errors, betti_numbers, topology_change
from repro.methods.skeleton.binarise import binarise
from repro.methods.skeleton.losses import cldice, cldice_of, dice, overlap_loss
from repro.methods.skeleton.operations import foreign_operations
from repro.methods.skeleton.simple_points import BooleanTest, EulerTest
from repro.methods.skeleton.skeletonize import Skeletonize

__all__ = [
    "BooleanTest",
    "ClassicalSkeleton",
    "EulerTest",
    "LearnedSkeleton",
    "Skeletonize",
    "SoftSkeleton",
    "betti_errors",
    "betti_numbers",
    "binarise",
    "cldice",
    "cldice_of",
    "dice",
    "foreign_operations",
    "overlap_loss",
    "topology_change",
]
