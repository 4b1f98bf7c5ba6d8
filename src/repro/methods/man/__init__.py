"""Momentum Auxiliary Network and its family of local learning, usable from a plain PyTorch loop.

Three hidden layers, each a gradient-isolated block with an auxiliary classifier and a bridge:

>>> import torch
>>> from repro.methods.man import LocalLearning
>>> from repro.models import MLP
>>> _ = torch.manual_seed(0)
>>> x = torch.randn(256, 8)
>>> y = (x.square().sum(dim=1) > 7).long()
>>> model = MLP(input_shape=[8], classes=2, hidden=[32, 32, 32])
>>> method = LocalLearning(input_shape=[8], classes=2, head="0c1f", momentum=0.99)
>>> method.attach(model)
>>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
>>> optimizer = method.optimizer(model, sgd)
>>> for epoch in range(20):
...     for batch in zip(x.split(32), y.split(32)):
...         optimizer.zero_grad()
...         loss = method.backward(None, batch, torch.Tensor.backward)
...         optimizer.step()
>>> (model(x).argmax(1) == y).float().mean().item() > 0.9  # the model alone, nothing around it
True

``ema=False, bias=False`` is plain local learning, ``loss=`` one of ``dgl``, ``infopro`` and
``predsim``; ``modules=1`` is end-to-end training.

The parts stand on their own: `EmaOf` follows any module, `block_ends` cuts any row of units,
`auxiliary_head`, `Decoder` and `similarity` read features.
"""

from repro.methods.man.blocks import block_ends, loss_weight
from repro.methods.man.follow import EmaOf, copy_of, update_all
from repro.methods.man.heads import (
    Classification,
    Decoder,
    InfoPro,
    PredSim,
    auxiliary_head,
    similarity,
    unit_range,
)
from repro.methods.man.method import Bridge, LocalLearning, LocalLoss, unit_shapes

__all__ = [
    "Bridge",
    "Classification",
    "Decoder",
    "EmaOf",
    "InfoPro",
    "LocalLearning",
    "LocalLoss",
    "PredSim",
    "auxiliary_head",
    "block_ends",
    "copy_of",
    "loss_weight",
    "similarity",
    "unit_range",
    "unit_shapes",
    "update_all",
]
