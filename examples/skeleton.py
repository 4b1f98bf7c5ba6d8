"""Skeletons that a loss may contain: thinning by convolutions and simple arithmetic.

Logits move until the centrelines of two masks agree. Run it: ``python examples/skeleton.py``.
"""

import torch

from repro.methods.skeleton import Skeletonize, cldice

torch.manual_seed(0)
mask = torch.zeros(1, 1, 16, 24)
mask[..., 5:11, 3:21] = 1
print("\n".join("".join(" #"[int(v)] for v in row) for row in mask[0, 0]))
thin = Skeletonize(num_iter=5, probabilistic=False)(mask)
print("\n".join("".join(" #"[int(v)] for v in row) for row in thin[0, 0].round()))

logits = torch.zeros_like(mask, requires_grad=True)
optimizer = torch.optim.Adam([logits], lr=0.2)
skeletonize = Skeletonize(num_iter=4)
for step in range(41):
    loss = 1 - cldice(logits.sigmoid(), mask, skeletonize).mean()
    if step % 20 == 0:
        print(f"step {step}: clDice {1 - loss.item():.2f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
