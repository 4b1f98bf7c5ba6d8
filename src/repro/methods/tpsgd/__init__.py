"""Target-projection SGD (Lomnitz et al. 2022, arXiv 2208.08503), and the rules it is compared with.

Each layer learns, during the forward pass, to make its output a random projection of the label;
nothing of earlier layers is kept:

>>> import torch
>>> from repro.methods.tpsgd import TargetProjection
>>> from repro.models import MLP
>>> _ = torch.manual_seed(0)
>>> x = torch.randn(256, 8)
>>> y = x[:, :3].argmax(1)
>>> model = MLP(input_shape=[8], classes=3, hidden=[64, 64], activation="tanh")
>>> method = TargetProjection(loss="l2", hidden_lr=0.03)
>>> method.attach(model)
>>> sgd = lambda groups: torch.optim.SGD(groups, lr=0.1)
>>> optimizer = method.optimizer(model, sgd)
>>> for epoch in range(40):
...     for batch in zip(x.split(32), y.split(32)):
...         optimizer.zero_grad()
...         loss = method.backward(None, batch, torch.Tensor.backward)
...         optimizer.step()
>>> (model(x).argmax(1) == y).float().mean().item() > 0.9
True

``loss="drtp"`` is direct random target projection; `FeedbackAlignment` and `DirectFeedback` are its
elders, `Backprop` with ``hidden_lr=0`` is random features and a trained output layer. All of them
train any model that offers a `repro.models.Chain`, residual blocks as single layers.

The paper's text was not at hand: the rule for feed-forward layers was read in a catalogue of
optimizers; recurrent layers, convolutions, the law of P and the output layer are inferred.
"""

from repro.methods.tpsgd.chained import Backprop, run_alone
from repro.methods.tpsgd.feedback import DirectFeedback, FeedbackAlignment
from repro.methods.tpsgd.method import TargetProjection
from repro.methods.tpsgd.projections import LOCAL_LOSSES, Projections, draw, positions

__all__ = [
    "LOCAL_LOSSES",
    "Backprop",
    "DirectFeedback",
    "FeedbackAlignment",
    "Projections",
    "TargetProjection",
    "draw",
    "positions",
    "run_alone",
]
