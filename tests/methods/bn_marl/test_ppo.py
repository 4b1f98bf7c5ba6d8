"""The neural actor against enumeration, and PPO's parts against plain loops."""

from __future__ import annotations

import doctest
import itertools
import math

import networkx as nx
import pytest
import torch
from torch import Tensor

import repro.methods.bn_marl as bn_marl
from repro.errors import UserError
from repro.methods.bn_marl import (
    Aloha,
    Annealing,
    BayesNetActor,
    BayesNetPPO,
    CoordinationWorld,
    DagSampler,
    gae,
)
from repro.methods.bn_marl.layers import ValueNorm
from repro.methods.bn_marl.ppo import Rollout
from repro.methods.bn_marl.sampler import gumbel
from repro.methods.bn_marl.tabular import coordination_reward

pytestmark = pytest.mark.usefixtures("one_thread")


def small(graph: str = "learned", **knobs: object) -> BayesNetPPO:
    torch.manual_seed(0)
    world = CoordinationWorld(3, horizon=4)
    return BayesNetPPO(world, graph=graph, envs=3, updates=4, hidden=8, **knobs)  # type: ignore[arg-type]


def awake(actor: BayesNetActor) -> BayesNetActor:
    """An actor whose heads say something: fresh ones are nearly uniform."""
    for p in (actor.own, actor.parents, actor.bias):
        torch.nn.init.normal_(p)
    return actor


def random_graphs(count: int, n: int) -> Tensor:
    return DagSampler(1, context=2, agents=n)(torch.randn(1, count, 2)).graph


def test_docstring() -> None:
    assert doctest.testmod(bn_marl).failed == 0


def test_joint_probabilities_sum_to_one_and_only_parents_matter() -> None:
    torch.manual_seed(0)
    actor = awake(BayesNetActor(1, agents=3, observation=2, actions=3, hidden=8))
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    for G in random_graphs(10, 3)[0]:
        count = len(every)
        seen = torch.randn(1, 1, 3, 2).expand(1, count, 3, 2)
        with torch.no_grad():
            log_p, entropy = actor.evaluate(seen, every[None], G.expand(1, count, 3, 3))
        assert float(log_p.sum(-1).exp().sum()) == pytest.approx(1, abs=1e-5)
        assert entropy.min() >= 0
        for i in range(3):
            kept = [j for j in range(3) if j == i or G[j, i]]
            by_seen: dict[tuple[int, ...], list[float]] = {}
            for a, p in zip(every.tolist(), log_p[0, :, i].tolist(), strict=True):
                by_seen.setdefault(tuple(a[j] for j in kept), []).append(p)
            assert all(max(ps) - min(ps) < 1e-5 for ps in by_seen.values())
        if G.sum() == 3:  # a child does heed its parents
            assert float(log_p.std(1).max()) > 0


def test_parallel_acting_is_ancestral_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    n, count = 4, 60
    actor = awake(BayesNetActor(1, agents=n, observation=2, actions=3, hidden=8))
    G, seen = random_graphs(count, n), torch.randn(1, count, n, 2)
    noise = gumbel(torch.empty(1, count, n, 3))
    monkeypatch.setattr("repro.methods.bn_marl.actor.gumbel", lambda like: noise)
    found = actor.act(seen, G)
    own = actor.own_logits(seen)
    orders = set()
    for b in range(count):
        graph = nx.from_numpy_array(G[0, b].numpy(), create_using=nx.DiGraph)
        order = list(nx.topological_sort(graph))
        orders.add(tuple(order))
        actions = torch.zeros(1, count, n, dtype=torch.int64)
        for i in order:
            logits = actor.logits(own, seen, actions, G)
            actions[0, b, i] = (logits + noise)[0, b, i].argmax()
        assert torch.equal(found[0, b], actions[0, b])
    assert len(orders) > 5  # not the order of the agents' numbers alone


def test_sampled_frequencies_are_the_joint_probabilities() -> None:
    torch.manual_seed(0)
    play = small("full")
    awake(play.actor)
    soft, hard, _ = play.joint_policies()
    torch.testing.assert_close(soft.sum(-1), torch.ones(1, 8, dtype=torch.float64))
    assert torch.equal(hard.sum(-1), torch.ones(1, 8, dtype=torch.float64))
    state = torch.tensor([1.0, 0, 1]).expand(1, 20_000, 3)
    actions = play.actor.act(play.world.observe(state), play.fixed.expand(1, 20_000, 3, 3))
    counts = (actions @ torch.tensor([4, 2, 1])).flatten().bincount(minlength=8)
    torch.testing.assert_close(counts / 20_000, soft[0, 5].float(), atol=0.015, rtol=0)


def test_a_parents_action_carries_no_gradient_but_its_edge_does() -> None:
    actor = awake(BayesNetActor(1, 2, 2, 2, 8))
    G = torch.zeros(1, 4, 2, 2)
    G[..., 0, 1] = 1
    G.requires_grad_()
    log_p, _ = actor.evaluate(torch.randn(1, 4, 2, 2), torch.randint(2, (1, 4, 2)), G)
    (gradient,) = torch.autograd.grad(log_p.sum(), G)
    assert gradient[..., 0, 1].abs().min() > 0


@pytest.mark.parametrize("graph", ["none", "full", "random", "learned"])
def test_the_ratio_is_one_before_the_first_step(graph: str) -> None:
    play = small(graph, replicas=2)
    awake(play.actor)
    batch = play.rollout()
    G = batch.graph
    if batch.dag is not None:
        assert play.sampler is not None
        G = play.sampler.relax(batch.observations.flatten(2), batch.dag)
    again, _ = play.actor.evaluate(batch.observations, batch.actions, G)
    torch.testing.assert_close(again, batch.log_probs)
    assert batch.advantages.mean(1).abs().max() < 1e-5


def test_gae_against_the_sum() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 5, 3), torch.randn(2, 6, 3)
    found = gae(rewards, values, 0.9, 0.8)
    error = rewards + 0.9 * values[:, 1:] - values[:, :-1]
    for t in range(5):
        expected = sum(0.72 ** (k - t) * error[:, k] for k in range(t, 5))
        torch.testing.assert_close(found[:, t], expected)


def test_a_replica_is_trained_as_if_alone() -> None:
    """With the same weights and rollout, two replicas side by side move like one."""
    pair, single = small("full", replicas=2), small("full", replicas=1)
    for a, b in zip(single.parameters(), pair.parameters(), strict=True):
        a.data.copy_(b.data[1:])
    batch = pair.rollout()
    second = {name: value[1:] for name, value in vars(batch).items() if name != "dag"}
    half = Rollout(**second, dag=None)
    for name in ("mean", "square", "weight"):
        getattr(single.value_norm, name).copy_(getattr(pair.value_norm, name)[1:])
    for play, data in ((pair, batch), (single, half)):
        policy, value, _ = play.losses(data)
        (policy + value).sum().backward()
    for a, b in zip(single.parameters(), pair.parameters(), strict=True):
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad[1:], rtol=1e-4, atol=1e-6)


def test_annealing_follows_the_published_stairs() -> None:
    schedule = Annealing(enabled=True)
    targets = [schedule.target(p) for p in (0, 0.4, 0.55, 0.7, 1)]
    assert targets == pytest.approx([1, 1, 0.5, 0, 0])
    assert schedule.target(0.411) == pytest.approx(1 - 1 / 40)
    assert [round(schedule.pull(p), 6) for p in (0, 0.7, 0.718, 0.736, 1)] == [0.1, 0.1, 0.55, 1, 1]
    assert Annealing().pull(0.9) == 0
    with pytest.raises(UserError, match="start < end <= full"):
        Annealing(start=0.8)


def test_ppo_learns_and_annealing_takes_the_edges_away() -> None:
    play = small(
        resample_in_update=True, resimulate_parents=True,
        annealing={"enabled": True, "weight": 1.0}, dag={"edge_net": "deepset"},
    )  # fmt: skip
    play.updates = 120
    optimizer = torch.optim.Adam(play.parameters(), lr=7e-3, eps=1e-5)
    first = play.measure()
    play.advance(optimizer, 120)
    last = play.measure()
    assert last["poa"] > first["poa"] + 0.1
    assert last["open_ratio"] < 0.5 * first["open_ratio"]


def test_value_norm_restores_what_it_normalised() -> None:
    norm = ValueNorm(2)
    targets = torch.tensor([[60.0, 50, 40], [1, 2, 3]])
    norm.update(targets)
    assert norm.normalise(targets).mean(1).abs().max() < 1e-5
    torch.testing.assert_close(norm.restore(norm.normalise(targets)), targets)


def test_the_clip_of_values_is_centred_on_what_the_critic_said() -> None:
    """Before the first step nothing has moved, so that no sample's gradient is clipped away."""
    play = small("full", replicas=2)
    batch = play.rollout()  # moves the moments of `value_norm` far: they were 0 and 1
    _, value_loss, _ = play.losses(batch)
    found = torch.autograd.grad(value_loss.sum(), list(play.critic.parameters()))
    error = play.value(batch.observations.flatten(2)) - play.value_norm.normalise(batch.returns)
    assert (error.abs() < play.huber).all()
    plain = torch.autograd.grad(error.square().mean(1).sum() / 2, list(play.critic.parameters()))
    for ours, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, expected)
    batch.values = batch.values + 2 * play.clip  # now everything is out of reach
    _, value_loss, _ = play.losses(batch)
    far = torch.autograd.grad(value_loss.sum(), list(play.critic.parameters()))
    assert all(not torch.allclose(a, b) for a, b in zip(far, plain, strict=True))


def test_the_losses_of_a_policy_and_a_critic_that_moved() -> None:
    """Twice as likely actions, all of them good or all of them bad, and a critic that is right."""
    play = small("none", entropy=0.25)
    batch = play.rollout()
    for parameter in play.actor.parameters():
        torch.nn.init.zeros_(parameter)  # of two actions each has the probability 1/2
    batch.log_probs = torch.full_like(batch.log_probs, math.log(1 / 4))
    context = batch.observations.flatten(2)
    value = play.value(context).detach()
    batch.returns = play.value_norm.restore(value)
    batch.values = value - 0.5
    # Twice the advantage or what the clip leaves of it: the less that may be hoped for.
    for advantage, gain in ((0.5, (1 + play.clip) / 2), (-0.5, -1.0)):
        batch.advantages = torch.full_like(batch.advantages, advantage)
        policy_loss, value_loss, _ = play.losses(batch)
        assert policy_loss.item() == pytest.approx(-gain - 0.25 * math.log(2))
        # The critic may be no more than the clip away from what it said, 0.3 from the truth.
        assert value_loss.item() == pytest.approx(0.3**2 / 2, rel=1e-4)


def test_annealing_pulls_the_density_of_graphs_to_its_target() -> None:
    """At first with 0.1, to full graphs."""
    losses = []
    for enabled in (True, False):
        play = small(annealing={"enabled": enabled})
        policy_loss, _, density = play.losses(play.rollout())
        losses.append(policy_loss)
    assert 0 < density.item() < 1
    torch.testing.assert_close(losses[0] - losses[1], 0.1 * (1 - density))


def test_the_coordination_world_pays_and_starts_as_published() -> None:
    state, actions = torch.tensor([[0.0, 0, 1]]), torch.tensor([[1, 1, 1]])
    for pays, paid in (("next", actions), ("left", state)):
        world = CoordinationWorld(3, flip=0.0, pays=pays)
        after, reward = world.step(state, actions)
        assert torch.equal(after, actions.float())
        assert torch.equal(reward, coordination_reward(paid.float(), world.game.tolerance))
    torch.manual_seed(0)
    for start, share in (("published", 0.9), ("uniform", 0.5)):
        drawn = CoordinationWorld(10, start=start).reset((1, 20_000)).mean()
        assert float(drawn) == pytest.approx(share, abs=0.01)


def test_an_empty_neighbour_that_plays_disturbs_as_published() -> None:
    state = torch.ones(1, 1, 10)
    state[..., 1] = 0
    actions = torch.zeros(1, 1, 10)
    actions[..., [0, 1]] = 1
    paid = [
        float(Aloha(10, arrival=0.0, empty_disturbs=disturbs).step(state, actions)[1])
        for disturbs in (True, False)
    ]
    assert paid == pytest.approx([-10, 0.1])


def test_aloha_pays_and_counts() -> None:
    world = Aloha(agents=10, arrival=0.0)
    assert torch.equal(world.near, world.near.T)
    state = world.reset((1, 1))
    nobody, reward = world.step(state, torch.zeros(1, 1, 10))
    assert reward == 0
    assert torch.equal(nobody, state)
    two = torch.zeros(1, 1, 10)
    two[..., [0, 2]] = 1  # no neighbours
    after, reward = world.step(state, two)
    assert float(reward) == pytest.approx(0.2)
    assert after[0, 0, [0, 2]].tolist() == [0, 0]
    two[..., 1] = 1
    after, reward = world.step(state, two)
    assert float(reward) == pytest.approx(-30)
    assert torch.equal(after, state)
    play = BayesNetPPO(world, graph="learned", envs=2, updates=1, hidden=8, eval_graphs=2)
    play.advance(torch.optim.Adam(play.parameters()), 1)
    assert torch.isfinite(play.measure()["return"])


def test_particle_worlds_share_the_interface() -> None:
    world = bn_marl.ParticleWorld(agents=2, horizon=3)
    play = BayesNetPPO(world, graph="full", envs=2, updates=1, hidden=8, eval_graphs=2)
    play.advance(torch.optim.Adam(play.parameters()), 1)
    assert play.measure()["return"] < 0


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"graph": "learnt"}, "Did you mean 'learned'"),
        ({"replicas": 0}, "replicas is a whole number"),
        ({"graph": "random", "density": 2.0}, "density"),
        ({"graph": "full", "annealing": {"enabled": True}}, "only a learned graph"),
    ],
)
def test_ppo_says_what_is_wrong(knobs: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        small(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_everything_runs_on_a_device(device: str) -> None:
    players = (
        small("learned", annealing={"enabled": True}, resimulate_parents=True),
        small("random"),
        BayesNetPPO(Aloha(4, horizon=3), envs=2, updates=2, hidden=8, eval_graphs=2),
        bn_marl.GradientPlay([2, 3], "full", starts=2),
    )
    for player in players:
        player = player.to(device)
        player.advance(torch.optim.SGD(player.parameters(), lr=0.01), 2)
        measured = player.measure()
        assert all(torch.isfinite(value) for value in measured.values())
