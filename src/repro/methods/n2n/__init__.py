"""N2N learning (Ashok et al. 2018, arXiv 1709.06030): a policy that removes and shrinks layers.

A recurrent policy reads a description of each layer of a trained teacher and says, by REINFORCE,
which to remove (stage 1) or by which factor to shrink them (stage 2). Each student it proposes is
trained briefly, with fresh weights, to imitate the teacher, and is worth its compression times its
relative accuracy:

>>> import torch
>>> from repro.methods.n2n import Judge, Recipe, Reinforce, Removal, RemovalPolicy
>>> from repro.methods.n2n import accuracies, read, train
>>> from repro.models import MLP
>>> _ = torch.manual_seed(0)
>>> x = torch.randn(512, 8)
>>> y = x[:, :3].argmax(1)
>>> recipe = Recipe(epochs=3, lr=0.01)
>>> epochs = lambda epoch: zip(x.split(64), y.split(64))
>>> model = MLP([8], 3, hidden=[32, 32, 32], batch_norm=True)
>>> train([model], epochs, recipe)
>>> held_out = lambda: [(x, y)]
>>> (accuracy,) = accuracies([model], held_out())
>>> judge = Judge(model, accuracy, [8], epochs, held_out, recipe)
>>> search = Reinforce(RemovalPolicy(Removal(keep=[])), lr=0.02)
>>> teacher, found = read(model), []
>>> for update in range(8):
...     actions = search.propose(teacher, 4, torch.Generator().manual_seed(update))
...     rollouts = judge.rate([search.edit.apply(teacher, each) for each in actions])
...     rewards = torch.tensor([each.reward for each in rollouts])
...     measured = search.learn(teacher, actions, rewards)
...     found += rollouts
>>> best = max(found, key=lambda each: each.reward)
>>> judge.size(teacher) / best.parameters > 3
True

`Shrinkage` and `ShrinkagePolicy` are stage 2; `HillClimbing` is a search without a policy;
`DESIGNS` and `of_size` are students made by hand, `Limit` bounds size or accuracy. Where the
released code does something that can only be a mistake, there is a switch for it, and it is off.

The paper's text was not at hand: the method was read in the authors' code and in notes about the
paper, its numbers are recalled.
"""

from repro.methods.n2n.architecture import (
    Architecture,
    Block,
    InvalidArchitectureError,
    Layer,
    Residual,
    build,
    count_parameters,
    dump,
    load,
    read,
    rows,
)
from repro.methods.n2n.designs import DESIGNS, of_size
from repro.methods.n2n.edits import Edit, Removal, Shrinkage
from repro.methods.n2n.judge import Judge, Rollout, key
from repro.methods.n2n.policies import RemovalPolicy, ShrinkagePolicy, describe
from repro.methods.n2n.pruned import prune_to_size
from repro.methods.n2n.rewards import INVALID, Limit, compression_reward, reward
from repro.methods.n2n.search import Budget, HillClimbing, Reinforce, Search
from repro.methods.n2n.students import Recipe, accuracies, fresh, train

__all__ = [
    "DESIGNS",
    "INVALID",
    "Architecture",
    "Block",
    "Budget",
    "Edit",
    "HillClimbing",
    "InvalidArchitectureError",
    "Judge",
    "Layer",
    "Limit",
    "Recipe",
    "Reinforce",
    "Removal",
    "RemovalPolicy",
    "Residual",
    "Rollout",
    "Search",
    "Shrinkage",
    "ShrinkagePolicy",
    "accuracies",
    "build",
    "compression_reward",
    "count_parameters",
    "describe",
    "dump",
    "fresh",
    "key",
    "load",
    "of_size",
    "prune_to_size",
    "read",
    "reward",
    "rows",
    "train",
]
