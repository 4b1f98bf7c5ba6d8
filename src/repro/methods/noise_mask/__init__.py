"""Policy gradient-driven noise mask (Yavuz & Yang 2024, arXiv 2406.14568).

A classifier is first trained on images times smooth random masks. The masks' cells are Beta
variables whose parameters a policy reads off the image; the policy learns by a score-function
gradient, with the classifier's cross-entropy as the cost. Then the policy is thrown away, and the
"heated" classifier is fine-tuned on clean images:

>>> import torch
>>> from repro.methods.noise_mask import MaskPolicy, NoiseMask
>>> from repro.models.vision.small_cnn import SmallCNN
>>> _ = torch.manual_seed(0)
>>> x = torch.randn(256, 1, 8, 8)
>>> y = x[:, 0, 2:6, 2:6].flatten(1).unfold(1, 4, 4).mean(2).argmax(1)
>>> model = SmallCNN([1, 8, 8], 4, widths=[16, 16])
>>> policy = MaskPolicy(SmallCNN([1, 8, 8], 1, widths=[8], strides=[2], pool=1), grid=4)
>>> method = NoiseMask(policy, kernel=3, sigma=1.0)
>>> method.attach(model)
>>> loss_of = lambda batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
>>> optimizer = method.optimizer(model, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9))
>>> for epoch in range(6):  # heating
...     for batch in zip(x.split(32), y.split(32)):
...         optimizer.zero_grad()
...         loss = method.backward(loss_of, batch, torch.Tensor.backward)
...         method.before_step(model)  # moves the policy
...         optimizer.step()
>>> for epoch in range(6):  # fine-tuning
...     for batch in zip(x.split(32), y.split(32)):
...         optimizer.zero_grad()
...         loss_of(batch).backward()
...         optimizer.step()
>>> (model(x).argmax(1) == y).float().mean().item() > 0.9
True

The published objective is no textbook REINFORCE, and it multiplies the classifier's gradient by
about log G²: see `NoiseMask`. `InputNoise` has the controls, ``loss_scale=flat_loss_scale(G)``
without any mask first among them.

The method was read in the authors' code; the paper's text was not at hand.
"""

from repro.methods.noise_mask.controls import InputNoise
from repro.methods.noise_mask.masks import (
    BetaLogits,
    SmoothUpsampling,
    flat_loss_scale,
    log_sum_density,
)
from repro.methods.noise_mask.method import NoiseMask
from repro.methods.noise_mask.policy import MaskPolicy

__all__ = [
    "BetaLogits",
    "InputNoise",
    "MaskPolicy",
    "NoiseMask",
    "SmoothUpsampling",
    "flat_loss_scale",
    "log_sum_density",
]
