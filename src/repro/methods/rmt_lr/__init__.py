"""Learning rates as a function of batch size, by random matrix theory (Granziol et al. 2022).

A batch sees a larger curvature than all data do, and so allows a smaller rate. How much larger is
told by the variance of its Hessian along the top eigenvector:

>>> import torch
>>> from repro.methods.rmt_lr import batch_top, carried_rate, critical_batch, effective_batch
>>> from repro.methods.rmt_lr import hessian_noise, max_rate
>>> from repro.toolbox.linear_algebra.curvature import Curvature
>>> from repro.toolbox.linear_algebra.lanczos import lanczos
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(
...     torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
... )
>>> x, y = torch.randn(256, 8), torch.randint(3, (256,))
>>> full = Curvature(model, [(x, y)])
>>> ritz = lanczos(full, torch.randn(full.size), steps=20)
>>> top, vector = float(ritz.top), ritz.vectors(1)[0]
>>> theta = full.theta.expand(16, -1)  # 16 batches of 16, side by side
>>> batches = Curvature(model, [(x.view(16, 16, 8), y.view(16, 16))], theta=theta)
>>> b = effective_batch(16, 256)
>>> noise = hessian_noise(full, batches, vector, torch.randn(3, full.size), 16, b)
>>> batch_top(top, noise.across, b) > top
True
>>> B_star = critical_batch(top, noise.across)
>>> rate = carried_rate(0.1, tuned_at=32, batch=64, rule="rmt", critical=B_star)
>>> 0.1 < rate < 0.2
True

`SpectralRates` sets rate and momentum of SGD from the spectrum while it trains, in a plain loop:

>>> from repro.methods.rmt_lr import SpectralRates
>>> method = SpectralRates(every=10, lanczos_steps=10)
>>> method.attach(model)
>>> optimizer = method.optimizer(model, lambda weights: torch.optim.SGD(weights, lr=0.1))
>>> for step in range(30):
...     optimizer.zero_grad()
...     loss = method.backward(
...         lambda batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
...         (x[:32], y[:32]),
...         torch.Tensor.backward,
...     )
...     method.before_step(model)
...     optimizer.step()
>>> float(loss) < 1.1
True
"""

from repro.methods.rmt_lr.learner import (
    SpectralRates,
    damped_step,
    line_search_rate,
    low_curvature,
)
from repro.methods.rmt_lr.noise import HessianNoise, hessian_noise
from repro.methods.rmt_lr.theory import (
    Rule,
    batch_top,
    carried_rate,
    critical_batch,
    effective_batch,
    heavy_ball_optimum,
    max_rate,
    minimal_damping,
    shifted,
)

__all__ = [
    "HessianNoise",
    "Rule",
    "SpectralRates",
    "batch_top",
    "carried_rate",
    "critical_batch",
    "damped_step",
    "effective_batch",
    "heavy_ball_optimum",
    "hessian_noise",
    "line_search_rate",
    "low_curvature",
    "max_rate",
    "minimal_damping",
    "shifted",
]
