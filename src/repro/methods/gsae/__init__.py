"""Sparse autoencoders whose k active latents are chosen with the model's gradient (g-SAE).

Features that Make a Difference (Olmo et al., arXiv 2411.10397), and what it is compared with: TopK,
BatchTopK, ReLU with an L1 penalty, Gated and JumpReLU autoencoders. A dictionary for what the first
layer of a classifier reads, in a plain loop:

>>> import torch
>>> from repro.methods.gsae import (
...     GradientAugmented, Magnitude, Site, TopKAutoencoder, gradient_of, kl_divergence, read,
...     trace,
... )
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(
...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
... ).requires_grad_(False)
>>> site = Site(model, "1")  # the output of the ReLU: 16 numbers an example
>>> inputs, labels = torch.randn(512, 8), torch.randint(3, (512,))
>>> sae = TopKAutoencoder(16, latents=32, k=4, selector=GradientAugmented(beta=1.0))
>>> sae.initialise(read(site, inputs))
>>> optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
>>> losses = []
>>> for step in range(200):
...     output, x = trace(site, inputs)            # x is a leaf, output depends on it
...     g = gradient_of(output, labels, x)         # what the loss wants of x; frees the graph
...     optimizer.zero_grad()
...     loss = sae.loss(x.detach(), g)
...     loss.backward()
...     sae.before_step()                          # directions that would change a norm
...     optimizer.step()
...     sae.after_step()                           # unit norm
...     losses.append(loss.item())
>>> losses[-1] < 0.5 * losses[0]
True
>>> int((sae.encode(x.detach(), g) > 0).sum(1).max()) <= 4
True

and what the model makes of the reconstruction:

>>> with site.replace(lambda x: sae(x, selector=Magnitude())):  # no gradient, so no label, needed
...     spliced = model(inputs)
>>> bool(kl_divergence(model(inputs), spliced) < 0.05)
True
"""

from repro.methods.gsae.autoencoders import (
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    ReLUAutoencoder,
    SparseAutoencoder,
    TopKAutoencoder,
    geometric_median,
)
from repro.methods.gsae.measures import (
    Fidelity,
    cross_entropies,
    kl_divergence,
    recovery,
    steering_effects,
)
from repro.methods.gsae.selection import (
    GradientAugmented,
    Magnitude,
    RandomChoice,
    Selector,
    attribution,
)
from repro.methods.gsae.sites import Site, gradient_of, read, trace
from repro.methods.gsae.splicing import MEASURES, MODES, Splicing, sampled_labels

__all__ = [
    "MEASURES",
    "MODES",
    "BatchTopKAutoencoder",
    "Fidelity",
    "GatedAutoencoder",
    "GradientAugmented",
    "JumpReLUAutoencoder",
    "Magnitude",
    "RandomChoice",
    "ReLUAutoencoder",
    "Selector",
    "Site",
    "SparseAutoencoder",
    "Splicing",
    "TopKAutoencoder",
    "attribution",
    "cross_entropies",
    "geometric_median",
    "gradient_of",
    "kl_divergence",
    "read",
    "recovery",
    "sampled_labels",
    "steering_effects",
    "trace",
]
