"""LANTON: noise-adaptive layerwise learning rates (Hao et al., arXiv 2510.14009), and its bases.

An optimizer with a norm ball for each kind of layer (`repro.toolbox.lmo`) gives every layer of a
kind a step of the same length. LANTON measures each layer's gradient noise in the dual norm and
shortens the steps of the noisy ones (`Lanton`)::

    B_t = beta1 B_{t-1} + (1 - beta1) G_t
    H_t = beta2 H_{t-1} + (1 - beta2) ||G_t - G_ref||_*^2       G_ref = G_{t-1}, or another batch's
    r^l = ((c + min_j H^j) / (c + H^l))^p                       j: all layers of the kind
    X  <- X - eta r^l direction(B_t)

>>> import torch
>>> from repro.methods.lanton import Lanton, layer_groups
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(
...     torch.nn.Embedding(20, 16),
...     torch.nn.Linear(16, 16),
...     torch.nn.ReLU(),
...     torch.nn.Linear(16, 20),
... )
>>> optimizer = Lanton(layer_groups(model), lr=0.05)
>>> tokens = torch.randint(20, (64,))
>>> for step in range(60):
...     optimizer.zero_grad()
...     loss = torch.nn.functional.cross_entropy(model(tokens), (tokens + 1) % 20)
...     loss.backward()
...     optimizer.step()
>>> loss.item() < 0.1
True

With ``noise="off"`` it is the base optimizer; with other balls and factors that is Muon, D-Muon
(Moonlight) or Scion: see the arms in ``conf/paper/lanton.yaml``.
"""

from repro.methods.lanton.layers import layer_groups
from repro.methods.lanton.method import LayerwiseRates
from repro.methods.lanton.optimizer import Lanton, noise_rates

__all__ = ["Lanton", "LayerwiseRates", "layer_groups", "noise_rates"]
