"""Bayesian-network policies: agents that see each other's actions leave bad equilibria.

Exact gradient play in a game of common interest, without edges and with all of them. Run it:
``python examples/bn_marl.py``.
"""

import torch

from repro.methods.bn_marl import GradientPlay

for graph in ("none", "full"):
    torch.manual_seed(0)
    play = GradientPlay(agents=[2, 3], graph=graph, starts=20, updates=500)
    optimizer = torch.optim.SGD(play.parameters(), lr=0.1)
    for _ in range(play.updates):
        play.advance(optimizer)
    shares = [float(play.measure()[f"poa_n{agents}"]) for agents in (2, 3)]
    print(f"graph={graph}: {shares[0]:.3f} of the optimum with 2 agents, {shares[1]:.3f} with 3")
