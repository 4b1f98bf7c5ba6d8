"""Random matrix theory for learning rates: a batch is curved more than all data are.

How much more tells how the largest learning rate grows with the batch size. Run it:
``python examples/rmt_lr.py``.
"""

import torch
from sklearn.datasets import load_digits

from repro.methods.rmt_lr import (
    batch_top,
    carried_rate,
    critical_batch,
    effective_batch,
    hessian_noise,
    max_rate,
)
from repro.toolbox.linear_algebra.curvature import Curvature
from repro.toolbox.linear_algebra.lanczos import lanczos

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(1797)[:1792]
x, y = torch.tensor(images, dtype=torch.float32)[order] / 6 - 1, torch.tensor(labels)[order]
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))

full = Curvature(model, [(x, y)])
start = torch.randn(full.size)
ritz = lanczos(full, start, steps=20)
top, vector = float(ritz.top), ritz.vectors(1)[0]
for B in (16, 64, 256):
    M, b = 1792 // B, effective_batch(B, 1792)
    theta = full.theta.expand(M, -1)
    batches = Curvature(model, [(x.view(M, B, 64), y.view(M, B))], theta=theta)
    noise = hessian_noise(full, batches, vector, torch.randn(1, full.size), M, b).across
    measured = float(lanczos(batches, start.expand(M, -1), steps=20).top.mean())
    predicted = batch_top(top, noise, b)
    print(
        f"B={B}: top eigenvalue {measured:.2f} (predicted {predicted:.2f}, all data {top:.2f}),"
        f" largest rate {max_rate(measured):.2f}"
    )
B_star = critical_batch(top, noise)
rates = [carried_rate(0.1, 16, B, "rmt", B_star, 1792) for B in (1, 4, 16, 64, 256)]
print(f"critical batch {B_star:.1f}; 0.1 at B=16 becomes {', '.join(f'{r:.3f}' for r in rates)}"
      " at B=1, 4, 16, 64, 256")  # fmt: skip
