"""The learned parts: symmetries, where they start, and message passing written as loops."""

import doctest
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import repro.methods.icgnn as icgnn
from repro.errors import UserError
from repro.methods.icgnn import (
    CellFree,
    CompleteGraph,
    Downlink,
    FixedSizePrecoder,
    GridGraph,
    InformationCarryingGNN,
    LearnedPower,
    LearnedPrecoder,
    fractional_power,
    permutation_error,
    regularised_zero_forcing,
)


def stirred(model, seed=0):
    """A model in double precision whose parameters, those of the head too, are random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.double().parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model


def cell(B=4, K=5, M=7, N=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(B, K, N, M, dtype=torch.complex128, generator=generator)
    return Downlink.of(H, torch.linspace(3, 100, B, dtype=torch.float64))


def network(B=3, L=6, K=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    beta = 100 * torch.rand(B, L, K, generator=generator, dtype=torch.float64) ** 3 + 1e-3
    mask = torch.rand(B, L, K, generator=generator) < 0.6
    mask[:, 0] = False  # an access point that serves nobody
    return CellFree(
        beta, mask,
        torch.randint(1, 5, (B, L), generator=generator).double(),
        torch.full((B, L), 0.2, dtype=torch.float64),
        torch.ones(B, dtype=torch.float64),
        torch.arange(K).expand(B, K),
    )  # fmt: skip


def test_the_docstring_is_true():
    assert doctest.testmod(icgnn).failed == 0


def test_a_layer_is_its_equation_node_by_node():
    net = stirred(InformationCarryingGNN(nodes=2, outputs=1, edges=3, width=4, layers=1))
    x0, edges = torch.randn(1, 4, 2).double(), torch.randn(1, 4, 4, 3).double()
    layer = net.layers[0]
    expected = []
    for k in range(4):
        sent = [layer.from_node(x0[0, j]) + layer.from_edge(edges[0, k, j]) for j in range(4)]
        others = torch.stack(sent[:k] + sent[k + 1 :])
        messages = F.relu(layer.message(F.relu(others)))
        heard = torch.cat([messages.mean(0), messages.amax(0)])
        state = layer.keep(x0[0, k]) + layer.hear[0](heard)
        expected.append(net.head(layer.update(F.relu(state))))
    torch.testing.assert_close(net(x0, CompleteGraph(edges))[0], torch.stack(expected))


def test_links_hear_those_of_their_row_and_column():
    mask = torch.tensor([[[True, True, False], [True, False, True]]])
    messages = torch.arange(1.0, 7).view(1, 2, 3, 1)
    rows, columns = GridGraph(mask).collect(messages)
    assert rows[0, :, 0].tolist() == [[1.5, 2.0], [5.0, 6.0]]
    assert columns[0, 0].tolist() == [[2.5, 4.0], [2.0, 2.0], [6.0, 6.0]]


@pytest.mark.parametrize("steps", [3, None])
@pytest.mark.parametrize("N", [1, 2])
def test_the_precoder_follows_permutations_of_users_and_antennas(steps, N):
    model, given = stirred(LearnedPrecoder(steps)), cell(N=N, M=10)
    users, antennas = torch.randperm(5), torch.randperm(10)
    moved = given.permuted(users, antennas)
    assert torch.equal(moved.H, given.H[:, users][..., antennas])
    straight = given.permuted_decision(model(given), users, antennas)
    torch.testing.assert_close(model(moved), straight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(moved.rates(model(moved)), given.rates(model(given))[:, users])


class Column(nn.Module):
    """Gives all power of the second antenna to the third user, whoever stands there."""

    def forward(self, batch: Downlink) -> torch.Tensor:
        """One entry of one."""
        B, K, _, M = batch.H.shape
        W = torch.zeros(B, M, K, dtype=batch.H.dtype)
        W[:, 1, 2] = 1
        return W


def test_a_network_that_knows_its_users_by_place_is_found_out():
    torch.manual_seed(0)
    batch = Downlink.of(torch.randn(2, 4, 5, dtype=torch.complex64), 1.0)
    learned = LearnedPrecoder(width=8, layers=1).requires_grad_(False)
    assert permutation_error(Column(), batch) == 1  # its one entry stands elsewhere
    assert permutation_error(learned, batch) < 1e-10


def test_rates_do_not_see_rotated_antennas_or_phases_of_users():
    model, given = stirred(LearnedPrecoder(4)), cell()
    Q = torch.linalg.qr(torch.randn(7, 7, dtype=torch.complex128))[0]
    phase = torch.polar(torch.ones(5).double(), torch.rand(5).double() * 6)
    for H in (given.H @ Q, phase[:, None, None] * given.H):
        turned = Downlink.of(H, given.snr)
        torch.testing.assert_close(turned.rates(model(turned)), given.rates(model(given)))


def test_silent_antennas_and_padded_users_change_nothing_for_the_others():
    model, given = stirred(LearnedPrecoder(4)), cell()
    H, silent = given.H[:, :, 0], torch.zeros(4, 5, 2, dtype=torch.complex128)
    alone = model.precode(H, given.snr)
    padded = model.precode(torch.cat([H, silent], -1), given.snr)
    torch.testing.assert_close(padded[:, :7], alone)
    more = torch.cat([H, torch.randn(4, 2, 7, dtype=torch.complex128)], 1)
    mask = torch.tensor([True] * 5 + [False] * 2).expand(4, 7)
    filled = model.precode(more, given.snr, mask)
    torch.testing.assert_close(filled[..., :5], alone)
    assert filled[..., 5:].abs().max() == 0


def test_power_is_used_up_and_does_not_depend_on_the_batch():
    model, given = stirred(LearnedPrecoder(4)), cell()
    W = model(given)
    torch.testing.assert_close(W.abs().square().sum((1, 2)), torch.ones(4).double())
    single = model(Downlink(*(part[1:2] for part in given)))
    torch.testing.assert_close(single[0], W[1])


@pytest.mark.parametrize("steps", [2, None])
def test_an_untrained_precoder_is_regularised_zero_forcing(steps):
    given = cell()
    H = given.H[:, :, 0]
    expected = regularised_zero_forcing(H, given.snr, cg_steps=steps)
    for model in (LearnedPrecoder(steps), FixedSizePrecoder(5, steps)):
        torch.testing.assert_close(model.double()(given), expected)


def test_a_single_user_has_no_neighbours_and_no_trouble():
    given = cell(K=1)
    W = stirred(LearnedPrecoder(1))(given)
    gain = given.H[:, 0, 0].abs().square().sum(-1)
    torch.testing.assert_close(given.rates(W)[:, 0], torch.log2(1 + given.snr * gain))


def test_powers_follow_permutations_and_keep_every_limit():
    model, given = stirred(LearnedPower()), network()
    power = model(given)
    assert (power >= 0).all()
    assert (power.sum(-1) <= given.limit).all()
    assert power[~given.mask].abs().max() == 0
    points, users = torch.randperm(6), torch.randperm(4)
    moved = given.permuted(points, users)
    assert torch.equal(moved.beta, given.beta[:, points][..., users])
    straight = given.permuted_decision(power, points, users)
    torch.testing.assert_close(model(moved), straight)
    torch.testing.assert_close(moved.rates(model(moved)), given.rates(power)[:, users])


def test_untrained_powers_are_fractional():
    given = network()
    share = torch.tensor(3.0).double().sigmoid()
    torch.testing.assert_close(LearnedPower().double()(given), share * fractional_power(given, 0.5))


def test_an_access_point_uses_what_its_links_say_on_average(monkeypatch):
    model, given = LearnedPower().double(), network()
    said = torch.arange(72.0).double().view(3, 6, 4).sin()
    outputs = torch.stack([torch.zeros_like(said), said], -1)
    monkeypatch.setattr(model.network, "forward", lambda *_: outputs)
    used = model(given).sum(-1)
    for b, point in itertools.product(range(3), range(6)):
        own = said[b, point][given.mask[b, point]]
        share = torch.sigmoid(own.mean() + 3) if len(own) else 0
        assert float(used[b, point]) == pytest.approx(float(0.2 * share))


def test_every_parameter_is_trained_and_gradients_are_finite():
    for model, given in ((LearnedPrecoder(3), cell()), (LearnedPower(), network())):
        stirred(model)
        given.rates(model(given)).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("logit", [-30.0, -60.0, -85.0, -200.0])
def test_a_user_that_is_given_up_leaves_gradients_finite(logit):
    """In single precision the softmax of a hopeless user becomes zero, or nearly so."""
    H = torch.randn(2, 3, 4, dtype=torch.complex64)
    logits = torch.tensor([[0.0, 0.0, logit]]).expand(2, 3).clone().requires_grad_()
    share = logits.softmax(-1)
    W = icgnn.structured_precoder(H, torch.full((2,), 100.0), share, share, cg_steps=2)
    Downlink.of(H, 100.0).rates(W).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert W[..., 2].abs().max() < 1e-6


def test_the_ablation_forgets():
    full = InformationCarryingGNN(2, 2, 3)
    forgetful = InformationCarryingGNN(2, 2, 3, carry=False)
    deep: Any = full.layers[1]
    assert deep.from_node.in_features == 34
    deep = forgetful.layers[1]
    assert deep.from_node.in_features == 32
    assert forgetful.layers[1].from_edge is None
    x0, edges = torch.randn(1, 4, 2), torch.randn(1, 4, 4, 3)
    assert forgetful(x0, CompleteGraph(edges)).shape == (1, 4, 2)


def test_a_perceptron_refuses_other_sizes_and_nonsense_is_refused():
    with pytest.raises(UserError, match="built for 4 streams, not for 5"):
        FixedSizePrecoder(4)(cell())
    with pytest.raises(UserError, match="width is a whole number"):
        LearnedPower(width=0)
    with pytest.raises(UserError, match="kind is cellular or cellfree"):
        icgnn.learned("radio")  # type: ignore[arg-type]
