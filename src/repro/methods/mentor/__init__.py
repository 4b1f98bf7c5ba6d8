"""Mixture-of-experts actors and task-oriented perturbation for visual reinforcement learning.

Huang et al., "MENTOR: Mixture-of-Experts Network with Task-Oriented Perturbation for Visual
Reinforcement Learning", ICML 2025, arXiv 2410.14972. On top of DrQ-v2 and DrM, the actor's hidden
layer becomes ``y = Σ_{i in top-k} g_i E_i(z) / Σ_{top-k} g_i`` (`TopKMoE`), and every so many
updates weights become ``θ ← α θ + (1 − α) φ`` with ``φ ~ N(m, s²)``, the elementwise moments over
the agents with the highest returns so far (`TopSet`, `perturb`) instead of a fresh start.

The parts serve any network and loop:

>>> import torch
>>> from repro.methods.mentor import TopKMoE, TopSet, dormant_ratio
>>> from repro.methods.mentor import perturb, perturbed_weights, recorded_layers
>>> _ = torch.manual_seed(0)
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), TopKMoE(8, 3, 6, 2, 5, 5))
>>> optimizer, best = torch.optim.Adam(net.parameters()), TopSet(capacity=3)
>>> x = torch.randn(32, 4)
>>> for step in range(6):
...     loss = (net(x) - 1).square().mean() + 0.01 * net[2].auxiliary_loss()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
...     _ = best.offer(-loss.item(), perturbed_weights([net]))
>>> perturb(perturbed_weights([net]), alpha=0.6, rule="top", members=best)
>>> optimizer.state.clear()
>>> 0 <= dormant_ratio(recorded_layers(net), lambda: net(x)) < 1
True

The whole agent, in copies of a world that is seen in pictures (see `repro.data.worlds.sights`):

>>> from repro.data.worlds.corner_reacher import CornerReacher
>>> from repro.methods.mentor import Player, evaluate
>>> world = CornerReacher(size=8)
>>> small = {"channels": 4, "strides": [2], "trunk": 8, "width": 16, "shift": 1}
>>> small["moe"] = {"experts": 4, "top_k": 2, "hidden": 8, "gate_hidden": 8}
>>> player = Player(world, small, envs=8, n_step=1, batch=16, random_steps=15, learning_from=15)
>>> optimizer = torch.optim.Adam(each for each in player.parameters() if each.requires_grad)
>>> sorted(player.advance(optimizer, steps=40))
['actor', 'critic', 'loss', 'value']
>>> returns, solved = evaluate(player.agent, world, 64)
"""

from repro.methods.mentor.agent import Agent, Exploration, Mixing, Perturbing
from repro.methods.mentor.dormant import (
    dormant_neurons,
    dormant_ratio,
    exploitation_weight,
    exploration_noise,
    kept_share,
    recorded_layers,
)
from repro.methods.mentor.experts import StackedLinear, TopKMoE
from repro.methods.mentor.measures import conflict, gradient_cosines, mutual_information
from repro.methods.mentor.networks import (
    Actor,
    Critic,
    Encoder,
    Value,
    expectile_loss,
    random_shift,
)
from repro.methods.mentor.perturbation import (
    TopSet,
    candidate,
    fresh_weights,
    perturb,
    perturbed_weights,
)
from repro.methods.mentor.player import Player, evaluate, filmed, rollout
from repro.methods.mentor.probes import forks, task_conflict, task_information
from repro.methods.mentor.replay import Episodes, Replay, Transitions, stacked

__all__ = [
    "Actor",
    "Agent",
    "Critic",
    "Encoder",
    "Episodes",
    "Exploration",
    "Mixing",
    "Perturbing",
    "Player",
    "Replay",
    "StackedLinear",
    "TopKMoE",
    "TopSet",
    "Transitions",
    "Value",
    "candidate",
    "conflict",
    "dormant_neurons",
    "dormant_ratio",
    "evaluate",
    "expectile_loss",
    "exploitation_weight",
    "exploration_noise",
    "filmed",
    "forks",
    "fresh_weights",
    "gradient_cosines",
    "kept_share",
    "mutual_information",
    "perturb",
    "perturbed_weights",
    "random_shift",
    "recorded_layers",
    "rollout",
    "stacked",
    "task_conflict",
    "task_information",
]
