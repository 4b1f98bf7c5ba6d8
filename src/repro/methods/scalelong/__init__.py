"""ScaleLong: coefficients on the long skip connections of a UNet (Huang et al., NeurIPS 2023).

A UNet hands every encoder feature to its mirror decoder block through a long skip connection. With
N of them, index 1 the outermost, the features follow (arXiv 2310.13545, section 3)::

    h_N = middle(z_N),    h_{i-1} = b_i(kappa_i z_i + h_i),    z_i = a_i(z_{i-1})

and the size of h_0, the gradient and the sensitivity to the input are bounded by sums of kappa_i^2
and of kappa_i M^i. Plain networks have kappa_i = 1. **CS** sets kappa_i = kappa^(i-1), the deepest
skip smallest; **LS** lets a tiny network, shared by all skips, predict the coefficients.

Code consumes skips from the inside out, so everything here counts in *decoder order*: j = 0 is the
first decoder block after the middle, i.e. i = N - j. Any network takes part that lists the sizes of
its skips in ``skip_features`` and passes each through its ``scaler``:

>>> import torch
>>> from repro.methods.scalelong import SkipScaling, coefficients
>>> from repro.models.toys.skip_mlp import SkipMLP
>>> coefficients("cs", 6, kappa=0.5)
[0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0]
>>> _ = torch.manual_seed(0)
>>> model = SkipMLP(input_shape=[8], n_skips=4, width=32)
>>> SkipScaling("cs", kappa=0.7).attach(model)
>>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
>>> data = torch.randn(256, 1) * torch.ones(8)
>>> for step in range(100):  # predicts the noise of noised data
...     noise, time = torch.randn(256, 8), torch.rand(256)
...     mixed = (1 - time[:, None]).sqrt() * data + time[:, None].sqrt() * noise
...     loss = (model(mixed, 999 * time) - noise).square().mean()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> loss.item() < 0.5
True
"""

from repro.methods.scalelong.probes import at_initialisation, sensitivity
from repro.methods.scalelong.scaling import (
    FOLKLORE,
    SkipGate,
    SkipScaler,
    SkipScaling,
    coefficients,
    forward_gain,
    robustness_bound,
)

__all__ = [
    "FOLKLORE",
    "SkipGate",
    "SkipScaler",
    "SkipScaling",
    "at_initialisation",
    "coefficients",
    "forward_gain",
    "robustness_bound",
    "sensitivity",
]
