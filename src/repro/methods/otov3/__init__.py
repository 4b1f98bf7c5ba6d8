"""OTOv3: train once, get a smaller network that computes the same (Chen et al., arXiv 2312.09411).

Sets of parameters that make a channel (or a whole operator) zero for every input if they are zero
are found in the network's graph; an optimizer trains the important ones plainly and drives just
enough redundant ones to exact zero (`SparseTraining`: DHSPG, and H2SPG for operators); what is zero
is then cut out, and the outputs stay what they were.

>>> import torch
>>> from torch import Tensor, nn
>>> from repro.methods.otov3 import SparseTraining
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
>>> x = torch.randn(256, 4)
>>> y = (x[:, 0] * x[:, 1] > 0).long()
>>> method = SparseTraining(target=0.5, start=1, penalty=0.1, epsilon=0.5)
>>> method.attach(model)
>>> optimizer = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=0.3))
>>> def loss_of(batch):
...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
>>> for epoch in range(60):
...     method.start_epoch(epoch)
...     for batch in zip(x.split(32), y.split(32)):
...         optimizer.zero_grad()
...         _ = method.backward(loss_of, batch, Tensor.backward)
...         method.before_step(model)
...         optimizer.step()
...         method.after_step(model)
>>> smaller = method.extract()
>>> smaller
Sequential(
  (0): Linear(in_features=4, out_features=16, bias=True)
  (1): ReLU()
  (2): Linear(in_features=16, out_features=2, bias=True)
)
>>> torch.allclose(smaller(x), model(x), atol=1e-5)
True
"""

from repro.methods.otov3.blocks import Blocks, Slab, channel_blocks, module_blocks
from repro.methods.otov3.erasing import Segment, SegmentGraph, erase
from repro.methods.otov3.method import SparseTraining
from repro.methods.otov3.scores import SCORES, Evidence
from repro.methods.otov3.structures import Channels, Segments

__all__ = [
    "SCORES",
    "Blocks",
    "Channels",
    "Evidence",
    "Segment",
    "SegmentGraph",
    "Segments",
    "Slab",
    "SparseTraining",
    "channel_blocks",
    "erase",
    "module_blocks",
]
