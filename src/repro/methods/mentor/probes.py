"""What is asked of an agent on its way: what tasks do to its actor, what perturbations would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from repro.methods.mentor.experts import TopKMoE
from repro.methods.mentor.measures import conflict, gradient_cosines, mutual_information
from repro.methods.mentor.perturbation import Rule, TopSet, perturb, perturbed_weights
from repro.methods.mentor.player import Player

RULES: tuple[Rule, ...] = ("none", "random", "top", "recent", "mean")


@torch.no_grad()
def task_features(player: Player, task: int, count: int) -> Tensor:
    """What the agent's networks see of states of one task, from its replay."""
    seen, (joints, _) = player.sample(count, task)
    return player.agent.features(seen.state, joints)


def task_conflict(
    player: Player, pairs: Sequence[tuple[int, int]], count: int = 512
) -> dict[str, float]:
    """How the actor's loss pulls its hidden layer on opposed tasks.

    Args:
        player: whose agent is looked at, in the mode it is in.
        pairs: of tasks.
        count: states of each task.

    Returns:
        ``conflict``, see `measures.conflict`, of a mixture's experts without its
        gate; ``undefined``, the share of pairs whose cosine does not exist.
    """
    agent = player.agent
    hidden = agent.actor.hidden
    shared = hidden.experts if isinstance(hidden, TopKMoE) else hidden
    losses = []
    for task in range(player.world.tasks):
        x = task_features(player, task, count)
        losses.append(-agent.critic(x, agent.actor(x)).amin(0).mean())
    cosines = gradient_cosines(losses, list(shared.parameters()))
    undefined = sum(bool(cosines[i, j].isnan()) for i, j in pairs) / len(pairs)
    return {"conflict": float(conflict(cosines, pairs)), "undefined": undefined}


@torch.no_grad()
def task_information(player: Player, mixture: TopKMoE, count: int = 512) -> float:
    """I(task; expert) in nats of how a mixture routes the actor's features.

    Args:
        player: whose trunk is used.
        mixture: its own, or another one of the same sizes, such as it was at first.
        count: states of each task.
    """
    actor, counts = player.agent.actor, []
    for task in range(player.world.tasks):
        z = actor.policy[:2](actor.trunk(task_features(player, task, count)))
        counts.append((mixture.route(z)[1] > 0).sum(0))
    return mutual_information(torch.stack(counts))


def forks(
    actor: nn.Module, best: TopSet, latest: TopSet, alpha: float, score: Callable[[], float]
) -> Mapping[str, float]:
    """Tries every rule of perturbation on the actor, which is afterwards as it was.

    Args:
        actor: whose weights are perturbed.
        best: sets of `perturbed_weights` of actors before it.
        latest: likewise.
        alpha: share of the weights that is kept.
        score: what the actor is worth now.

    Returns:
        ``fork_<rule>``; ``fresh_<rule>``, the score of what weights are mixed with; and
        ``shared_share``, the part of the best that are among the latest.
    """
    trained, found = copy.deepcopy(actor.state_dict()), {}
    for rule in RULES:
        for name, kept in (("fork", alpha), ("fresh", 0.0))[: 1 if rule == "none" else 2]:
            members = latest if rule == "recent" else best
            perturb(perturbed_weights([actor]), kept, rule, members)
            found[f"{name}_{rule}"] = score()
            actor.load_state_dict(trained)
    both = set(best.numbers) & set(latest.numbers)
    return found | {"shared_share": len(both) / max(1, len(best))}
