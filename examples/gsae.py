"""g-SAE: a sparse autoencoder whose active latents are chosen with the model's gradient.

It explains the hidden layer of a trained digit reader; what counts is how little the reader's
output changes when it reads the reconstruction. Run it: ``python examples/gsae.py``.
"""

from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from repro.methods.gsae import (
    GradientAugmented,
    Magnitude,
    Site,
    TopKAutoencoder,
    gradient_of,
    kl_divergence,
    read,
    trace,
)

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(500):
    batch = torch.randint(1400, (64,))
    optimizer.zero_grad()
    cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
model.requires_grad_(False)

site = Site(model, "1")  # the output of the ReLU
for selector in (Magnitude(), GradientAugmented(beta=1.0)):
    torch.manual_seed(0)
    sae = TopKAutoencoder(64, latents=128, k=4, selector=selector)
    sae.initialise(read(site, x[:1400]))
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for _ in range(300):
        batch = torch.randint(1400, (256,))
        output, hidden = trace(site, x[batch])
        gradient = gradient_of(output, y[batch], hidden)
        optimizer.zero_grad()
        sae.loss(hidden.detach(), gradient).backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
    with site.replace(partial(sae, selector=Magnitude())):
        spliced = model(x[1400:])
    change = kl_divergence(model(x[1400:]), spliced).mean()
    print(f"{type(selector).__name__}: 4 of 128 latents change the output by {change:.3f} nats")
