"""Tables of the coordination game and of Bayesian-network policies, against closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from repro.errors import UserError
from repro.methods.bn_marl import (
    CoordinationGame,
    GradientPlay,
    conditionals,
    fixed_graph,
    is_acyclic,
    joint_policy,
    logit_shape,
    open_ratio,
    policy_gradient,
)

pytestmark = pytest.mark.usefixtures("one_thread")
GRAPHS = ("none", "line", "full")


def random_logits(G: Tensor, starts: int = 2, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    n = len(G)
    return [
        torch.randn(starts, *logit_shape(G, i, 2**n), dtype=torch.float64, requires_grad=True)
        for i in range(n)
    ]


def enumerated_joint(tables: list[Tensor], G: Tensor) -> Tensor:
    """The joint policy by loops over states, joint actions and agents."""
    n = len(G)
    joint = torch.ones(len(tables[0]), 2**n, 2**n, dtype=torch.float64)
    for s in range(2**n):
        for number, a in enumerate(itertools.product((0, 1), repeat=n)):
            for i in range(n):
                table = tables[i][:, s]
                for j in range(n):
                    table = table[:, a[j] if j == i or G[j, i] else 0]
                joint[:, s, number] *= table
    return joint


def test_rewards_are_the_published_ones() -> None:
    assert CoordinationGame(2).reward.tolist() == [3, 0, 0, 2]
    assert CoordinationGame(3).reward.tolist() == [3, 0, 0, 1, 0, 1, 1, 2]
    five = CoordinationGame(5)
    for bits, reward in zip(five.bits.tolist(), five.reward.tolist(), strict=True):
        ones = sum(bits)
        assert reward == (3 if ones <= 1 else 2 if ones >= 4 else 1 if ones == 3 else 0)


@pytest.mark.parametrize(
    ("n", "best", "second", "uniform"),
    [
        (2, 47.8, 0.682008, 0.523013),
        (3, 43.104, 0.774313, 0.463994),
        (5, 53.77816, 0.698533, 0.464873),
    ],
)
def test_known_values(n: int, best: float, second: float, uniform: float) -> None:
    game = CoordinationGame(n, normalise_start=True)
    assert game.optimum() == pytest.approx(best, abs=1e-6)
    ones = torch.zeros(game.states, game.states, dtype=torch.float64)
    ones[:, -1] = 1
    assert float(game.objective(ones)) / best == pytest.approx(second, abs=1e-6)
    even = torch.full_like(ones, 1 / game.states)
    assert float(game.objective(even)) / best == pytest.approx(uniform, abs=1e-6)
    published = CoordinationGame(n)
    assert published.optimum() == pytest.approx(best * 2**n / n)  # its weights sum to 2ⁿ/n


def test_transitions_and_the_closed_form_of_a_constant_action() -> None:
    game = CoordinationGame(2, normalise_start=True)
    torch.testing.assert_close(game.transition.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(game.transition.diag(), torch.full((4,), 0.81).double())
    assert game.optimum() == pytest.approx(1.25 + 19 * 2.45)
    assert CoordinationGame(3).transition[4, 0] == pytest.approx(0.1 * 0.9**2)  # agent 0 first


@pytest.mark.parametrize("graph", [*GRAPHS, "line_published"])
def test_joint_table_is_the_enumerated_product(graph: str) -> None:
    G = fixed_graph(graph, 3)
    tables = [table.detach() for table in conditionals(random_logits(G))]
    joint = joint_policy(tables)
    torch.testing.assert_close(joint, enumerated_joint(tables, G))
    torch.testing.assert_close(joint.sum(-1), torch.ones(2, 8, dtype=torch.float64))


def test_a_complete_graph_represents_any_joint_policy() -> None:
    torch.manual_seed(0)
    target = torch.rand(1, 8, 2, 2, 2, dtype=torch.float64)
    target = target / target.sum((2, 3, 4), keepdim=True)
    # The chain rule: π(a⁰), π(a¹ | a⁰), π(a² | a⁰ a¹).
    first = target.sum((3, 4), keepdim=True)
    second = target.sum(4, keepdim=True)
    logits = [first.log(), (second / first).log(), (target / second).log()]
    assert [tuple(x.shape[1:]) for x in logits] == [
        logit_shape(fixed_graph("full", 3), i, 8) for i in range(3)
    ]
    torch.testing.assert_close(joint_policy(conditionals(logits)), target.flatten(2))


@pytest.mark.parametrize("graph", GRAPHS)
def test_closed_form_gradient_is_that_of_autograd(graph: str) -> None:
    game, G = CoordinationGame(3), fixed_graph(graph, 3)
    logits = random_logits(G)
    value = game.objective(joint_policy(conditionals(logits)))
    expected = torch.autograd.grad(value.sum(), logits)
    found = policy_gradient(game, [table.detach() for table in conditionals(logits)])
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
        assert b.sum(i - 3).abs().max() < 1e-12  # a shift of one conditional's logits is nothing


def test_value_is_the_bellman_fixed_point_and_occupancy_its_dual() -> None:
    game, G = CoordinationGame(3, normalise_start=True), fixed_graph("line", 3)
    joint = joint_policy(conditionals(random_logits(G))).detach()
    V, d = game.value(joint), game.occupancy(joint)
    torch.testing.assert_close((joint * game.quality(V)).sum(-1), V)
    torch.testing.assert_close(d.sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(d @ game.reward / (1 - game.gamma), game.objective(joint))


def test_no_edges_is_independent_policy_gradient() -> None:
    """One agent's table and softmax at a time, as an ordinary implementation has them."""
    game = CoordinationGame(2)
    torch.manual_seed(1)
    theta = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)  # agent, state, action
    play = GradientPlay([2], "none", starts=1)
    with torch.no_grad():
        play.tables(0)[0].copy_(theta[0].view(1, 4, 2, 1))
        play.tables(0)[1].copy_(theta[1].view(1, 4, 1, 2))
    ours = torch.optim.SGD(play.parameters(), lr=0.05)
    theirs = torch.optim.SGD([theta], lr=0.05)
    for _ in range(20):
        p, q = theta.softmax(-1)
        joint = torch.stack([p[:, a] * q[:, b] for a in (0, 1) for b in (0, 1)], 1)
        theirs.zero_grad()
        (-game.objective(joint)).backward()
        theirs.step()
        play.advance(ours)
    torch.testing.assert_close(play.tables(0)[0].detach().view(4, 2), theta[0].detach())
    torch.testing.assert_close(play.tables(0)[1].detach().view(4, 2), theta[1].detach())


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("see_parents", [False, True])
def test_best_response_is_the_best_of_all_deterministic_deviations(
    graph: str, see_parents: bool
) -> None:
    game, G = CoordinationGame(2), fixed_graph(graph, 2)
    tables = [table.detach()[:1] for table in conditionals(random_logits(G, seed=3))]
    J = game.objective(joint_policy(tables))
    gaps = game.nash_gaps(tables, G, see_parents)
    for i in range(2):
        shape = [1, 4, 1, 1]
        shape[2 + i] = 2
        parents = [j for j in range(2) if G[j, i]] if see_parents else []
        for j in parents:
            shape[2 + j] = 2
        cells = 4 * 2 ** len(parents)
        best = -torch.inf
        for choice in itertools.product((0, 1), repeat=cells):
            first = torch.tensor(choice, dtype=torch.float64).view(
                [1 if axis == 2 + i else size for axis, size in enumerate(shape)]
            )
            deviated = list(tables)
            deviated[i] = torch.cat([first, 1 - first], 2 + i)
            best = max(best, float(game.objective(joint_policy(deviated))))
        assert float(gaps[0, i]) == pytest.approx(best - float(J), rel=1e-9)
    if see_parents:
        assert gaps.min() >= -1e-9
    assert gaps.max() >= -1e-9  # of the root, at least


def test_graphs() -> None:
    assert fixed_graph("line", 3).tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert fixed_graph("line_published", 2).sum() == 0
    assert fixed_graph("line_published", 5).sum() == 3
    assert torch.equal(fixed_graph("line", 2), fixed_graph("full", 2))
    assert open_ratio(fixed_graph("full", 5)) == 1
    circle = torch.tensor([[0.0, 1], [1, 0]])
    assert is_acyclic(torch.stack([circle, circle.triu()])).tolist() == [False, True]
    with pytest.raises(UserError, match="Did you mean 'line'"):
        fixed_graph("lime", 3)


def test_play_climbs_to_a_nash_policy_and_the_complete_graph_to_the_optimum() -> None:
    torch.manual_seed(0)
    measured = {}
    for graph in ("none", "full"):
        play = GradientPlay([2], graph, starts=20, updates=200)
        optimizer = torch.optim.SGD(play.parameters(), lr=0.2)
        before = play.poa()
        play.advance(optimizer, 200)
        assert (play.poa() > before).all()
        assert (play.poa() <= 1 + 1e-9).all()
        assert (play.nash_gap() > -1e-9).all()
        measured[graph] = play.measure()
        assert measured[graph]["gap_share_n2"] < 0.05
        assert measured[graph]["poa_rise_n2"] > 0
    assert measured["full"]["above_n2"] > measured["none"]["above_n2"] + 0.3


def test_replicated_starts_are_those_of_a_single_one() -> None:
    torch.manual_seed(0)
    many = GradientPlay([3], "line", starts=3, updates=5, max_norm=0.5)
    one = GradientPlay([3], "line", starts=1, updates=5, max_norm=0.5)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        a.data.copy_(b.data[1:2])
    for play in (many, one):
        play.advance(torch.optim.SGD(play.parameters(), lr=0.1), 5)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a.data, b.data[1:2])


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"agents": 1}, "agents is a whole number of at least 2"),
        ({"agents": 4}, "method.tolerance"),
        ({"flip": 0.7}, "flip lies in"),
        ({"gamma": 1.0}, "gamma lies in"),
    ],
)
def test_a_game_says_what_is_wrong(knobs: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        CoordinationGame(**knobs)  # type: ignore[arg-type]
