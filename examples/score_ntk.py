"""A score learned by kernel regression: too many steps of descent learn the labels' noise.

The law of the data is known here, and with it the exact posterior mean E[x_0 | x_t], from which a
score follows. Run it: ``python examples/score_ntk.py``.
"""

import torch

from repro.methods.score_ntk import KernelDescent, Regression, TwoLayer, ntk, rwy_steps
from repro.toolbox.diffusion import VPProcess
from repro.toolbox.exact_scores import PointMixture

corners = torch.tensor([[0.9, 0.9], [0.9, -0.9], [-0.9, 0.9], [-0.9, -0.9], [0.0, 0.0]])
law = PointMixture.uniform(corners.double())
problem = Regression(VPProcess(1.0, 1.0), t_min=0.1, t_max=2.0)
generator = torch.Generator().manual_seed(0)
train, held_out, test = (problem.draw(law, n, generator) for n in (100, 50, 2000))
z, z_test, exact = problem.inputs(train), problem.inputs(test), problem.exact(law, test)

taus = torch.tensor([1, 3, 10, 30, 100, 300, 1000, 20_000])
descent = KernelDescent(ntk(z, z), train.x0, rate=1.0)
kernel = descent.predict(ntk(z_test, z), taus)
held = descent.predict(ntk(problem.inputs(held_out), z), taus)
losses = (held - held_out.x0).square().sum(2).mean(1)
network, done = TwoLayer(z.shape[1], 2, width=1000, generator=generator), 0
print("steps   held-out loss   kernel's error   its distance from a network of 1,000 neurons")
for tau, loss, f in zip(taus.tolist(), losses, kernel, strict=True):
    line = f"{tau:5}   {loss:13.3f}   {(f - exact).square().sum(1).mean():14.3f}"
    if tau <= 1000:
        for _ in range(tau - done):
            network.step(z, train.x0, rate=1.0)
        done = tau
        line += f"   {(network(z_test) - f).square().sum(1).mean():.4f}"
    print(line)
noise = (held[losses.argmin()] - held_out.x0).square().mean().sqrt()
print(f"held-out triples stop at {taus[losses.argmin()]} steps, "
      f"the theory's rule at {rwy_steps(descent.eigenvalues, 1.0, float(noise))}")  # fmt: skip
