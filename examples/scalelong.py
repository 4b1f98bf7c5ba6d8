"""ScaleLong: coefficients on long skip connections keep the gradient small.

A network with eight long skips learns to denoise. Run it: ``python examples/scalelong.py``.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.utils import get_total_norm

from repro.methods.scalelong import SkipScaling
from repro.models.toys.skip_mlp import SkipMLP

images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1

for kind in ("none", "cs", "ls"):
    torch.manual_seed(0)
    model = SkipMLP(input_shape=[64], n_skips=8, width=64)
    SkipScaling(kind).attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    norms = []
    for _ in range(150):
        data = images[torch.randint(len(images), (64,))]
        noise, time = torch.randn(64, 64), torch.rand(64)
        mixed = (1 - time[:, None]).sqrt() * data + time[:, None].sqrt() * noise
        loss = (model(mixed, 999 * time) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(get_total_norm(p.grad for p in model.parameters() if p.grad is not None))
        optimizer.step()
    print(f"{kind}: loss {loss.item():.3f}, first gradient {norms[0]:.2f}")
