"""Graphs that a network draws: always acyclic, and differentiable where they should be."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest
import torch

from repro.errors import UserError
from repro.methods.bn_marl import DagSampler, best_permutation, dag_of, is_acyclic, sinkhorn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sinkhorn_is_doubly_stochastic_and_equals_the_log_space_loop() -> None:
    torch.manual_seed(0)
    scores = 3 * torch.randn(2, 5, 4, 4, dtype=torch.float64)
    expected = scores
    for _ in range(20):
        expected = expected - expected.logsumexp(-1, keepdim=True)
        expected = expected - expected.logsumexp(-2, keepdim=True)
    found = sinkhorn(scores)
    torch.testing.assert_close(found, expected.exp())
    torch.testing.assert_close(found.sum(-2), torch.ones(2, 5, 4, dtype=torch.float64))
    torch.testing.assert_close(sinkhorn(scores, 500).sum(-1), torch.ones(2, 5, 4).double())


def test_sinkhorn_stands_extreme_scores() -> None:
    scores = torch.tensor([[0.0, -300, -900], [0, -300, -900], [0, -300, -2000]])
    assert torch.isfinite(sinkhorn(scores)).all()


def test_cold_sinkhorn_solves_the_assignment_problem() -> None:
    torch.manual_seed(0)
    scores = torch.randn(20, 4, 4, dtype=torch.float64)
    P = best_permutation(scores)
    torch.testing.assert_close(sinkhorn(scores / 0.005, 2000).round(), P)


@pytest.mark.parametrize("n", [3, 6])  # enumerated, and by the Hungarian method
def test_best_permutation_against_all(n: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, n, n)
    P = best_permutation(scores)
    assert torch.equal(P.sum(-1), torch.ones(2, 3, n))
    assert torch.equal(P.sum(-2), torch.ones(2, 3, n))
    found = (P * scores).sum((-2, -1)).flatten()
    for k, each in enumerate(scores.flatten(0, 1)):
        totals = [
            sum(float(each[row, column]) for row, column in enumerate(columns))
            for columns in itertools.permutations(range(n))
        ]
        assert float(found[k]) == pytest.approx(max(totals), rel=1e-5)


def test_ten_thousand_draws_are_acyclic() -> None:
    torch.manual_seed(0)
    sampler = DagSampler(2, context=3, agents=4)
    sample = sampler(torch.randn(2, 5000, 3))
    G = sample.graph
    assert is_acyclic(G).all()
    assert (G.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert set(G.unique().tolist()) == {0, 1}
    for each in G[0, :50]:
        assert nx.is_directed_acyclic_graph(
            nx.from_numpy_array(each.numpy(), create_using=nx.DiGraph)
        )
    # All orders come up: an edge may point either way.
    assert 0.05 < float(G[..., 0, 1].mean()) < 0.6
    assert 0.05 < float(G[..., 1, 0].mean()) < 0.6


def test_identity_and_all_edges_are_the_upper_triangle() -> None:
    ones = torch.ones(3, 3)
    assert torch.equal(dag_of(torch.eye(3), ones), ones.triu(1))
    order = torch.eye(3)[[2, 0, 1]]  # agent 2 first, then 0, then 1
    assert dag_of(order, ones).nonzero().tolist() == [[0, 1], [2, 0], [2, 1]]
    sampler = DagSampler(1, context=2, agents=3, order="identity")
    G = sampler(torch.randn(1, 200, 2)).graph
    assert (G.tril() == 0).all()


def test_relaxed_graphs_are_the_drawn_ones_with_a_gradient() -> None:
    torch.manual_seed(0)
    sampler, context = DagSampler(1, context=3, agents=3), torch.randn(1, 64, 3)
    sample = sampler(context)
    assert not sample.graph.requires_grad
    G = sampler.relax(context, sample)
    torch.testing.assert_close(G.detach(), sample.graph)
    (G * torch.randn(3, 3)).sum().backward()
    for net in (sampler.order_in, sampler.order_out, sampler.edge_in, sampler.edge_out):
        assert net.weight.grad is not None
        assert net.weight.grad.abs().sum() > 0


def test_the_density_of_edges_can_be_learned() -> None:
    torch.manual_seed(0)
    sampler, context = DagSampler(1, context=3, agents=3), torch.randn(1, 128, 3)
    optimizer = torch.optim.Adam(sampler.parameters(), lr=0.02)
    before = float(sampler(context).graph.mean())
    for _ in range(40):
        optimizer.zero_grad()
        sampler.relax(context, sampler(context)).mean().backward()
        optimizer.step()
    assert float(sampler(context).graph.mean()) < 0.2 * before


def test_deepset_shares_edge_probabilities_over_the_batch() -> None:
    torch.manual_seed(0)
    context = torch.randn(1, 8, 3)
    _, pooled = DagSampler(1, context=3, agents=3, edge_net="deepset")._scores(context)
    _, own = DagSampler(1, context=3, agents=3)._scores(context)
    torch.testing.assert_close(pooled, pooled[:, :1].expand_as(pooled))
    assert own.std(1).mean().item() > 0.01


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"edge_net": "cnn"}, "mlp or deepset"),
        ({"order": "x"}, "identity"),
        ({"temperature": 0}, "positive"),
    ],
)
def test_a_sampler_says_what_is_wrong(knobs: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        DagSampler(1, 2, 2, **knobs)  # type: ignore[arg-type]
