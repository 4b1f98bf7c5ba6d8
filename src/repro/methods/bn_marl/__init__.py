"""Bayesian-network policies for cooperative multi-agent reinforcement learning.

Chen & Zhang, "Context-Aware Bayesian Network Actor-Critic Methods for Cooperative Multi-Agent
Reinforcement Learning", ICML 2023, arXiv 2306.01920. Agents act in the order of a directed acyclic
graph and see the actions of their parents: ``π(a | s) = Π_i π^i(a^i | s, a^P(i))``. No edges is
ordinary decentralised play, all edges any joint policy.

Exact gradient play in a table, two graphs from the same ten starts:

>>> import torch
>>> from repro.methods.bn_marl import GradientPlay
>>> def share_of_optimum(graph):
...     _ = torch.manual_seed(0)
...     play = GradientPlay(agents=[2], graph=graph, starts=10, updates=300)
...     optimizer = torch.optim.SGD(play.parameters(), lr=0.1)
...     for _ in range(play.updates):
...         _ = play.advance(optimizer)
...     return float(play.measure()["poa_n2"])
>>> share_of_optimum("full") > share_of_optimum("none") + 0.01
True

PPO with a graph that is drawn for each state by a differentiable sampler:

>>> from repro.methods.bn_marl import BayesNetPPO, CoordinationWorld
>>> ppo = BayesNetPPO(CoordinationWorld(agents=3, horizon=5), graph="learned", envs=4, updates=2)
>>> optimizer = torch.optim.Adam(ppo.parameters(), lr=7e-4, eps=1e-5)
>>> for _ in range(ppo.updates):
...     logged = ppo.advance(optimizer)
>>> sorted(logged)
['loss', 'open_ratio', 'return']
"""

from repro.methods.bn_marl.actor import BayesNetActor
from repro.methods.bn_marl.environments import Aloha, CoordinationWorld, ParticleWorld
from repro.methods.bn_marl.gradient_play import GradientPlay
from repro.methods.bn_marl.graphs import fixed_graph, is_acyclic, open_ratio
from repro.methods.bn_marl.ppo import Annealing, BayesNetPPO, gae
from repro.methods.bn_marl.sampler import (
    DagSample,
    DagSampler,
    best_permutation,
    dag_of,
    sinkhorn,
)
from repro.methods.bn_marl.tabular import (
    CoordinationGame,
    conditionals,
    joint_policy,
    logit_shape,
    policy_gradient,
)

__all__ = [
    "Aloha",
    "Annealing",
    "BayesNetActor",
    "BayesNetPPO",
    "CoordinationGame",
    "CoordinationWorld",
    "DagSample",
    "DagSampler",
    "GradientPlay",
    "ParticleWorld",
    "best_permutation",
    "conditionals",
    "dag_of",
    "fixed_graph",
    "gae",
    "is_acyclic",
    "joint_policy",
    "logit_shape",
    "open_ratio",
    "policy_gradient",
    "sinkhorn",
]
