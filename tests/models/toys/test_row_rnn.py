from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.models.toys.row_rnn import Recurrent, RowRNN


def test_a_layer_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = Recurrent(5, 7), nn.RNN(5, 7, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.input.weight)
        theirs.bias_ih_l0.copy_(ours.input.bias)
        theirs.weight_hh_l0.copy_(ours.recurrent.weight)
        theirs.bias_hh_l0.zero_()
    x_BTI = torch.randn(3, 4, 5)
    torch.testing.assert_close(ours(x_BTI), theirs(x_BTI)[0])
    h_BU = ours.start(x_BTI)
    for x_BI in x_BTI.unbind(1):
        h_BU = ours.step(x_BI, h_BU)
    torch.testing.assert_close(h_BU, theirs(x_BTI)[1][0])


def test_reads_row_by_row_and_is_its_own_chain() -> None:
    torch.manual_seed(0)
    model = RowRNN([1, 8, 6], 10, hidden=[16, 12])
    assert sum(p.numel() for p in model.parameters()) == (
        (6 * 16 + 16 + 16 * 16) + (16 * 12 + 12 + 12 * 12) + (12 * 10 + 10)
    )
    x = torch.randn(2, 1, 8, 6)
    changed = x.clone()
    changed[:, :, -1] += 1  # the last row changes the last state alone
    stem, (first, second), stages, head = model.chain()
    states, others = first(stem(x)), first(stem(changed))
    assert torch.equal(states[:, :-1], others[:, :-1])
    assert not torch.equal(states[:, -1], others[:, -1])
    assert stages == [1, 1]
    assert torch.equal(head(second(states)), model(x))


def test_the_radius_is_that_of_the_recurrent_weights() -> None:
    weight = Recurrent(3, 8, radius=0.5).recurrent.weight
    torch.testing.assert_close(weight @ weight.T, 0.25 * torch.eye(8))


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(UserError, match="takes images"):
        RowRNN([64], 10)
    with pytest.raises(UserError, match="radius is positive"):
        RowRNN([1, 8, 8], 10, radius=0.0)
    with pytest.raises(UserError, match="Did you mean 'tanh'"):
        RowRNN([1, 8, 8], 10, activation="tan")
