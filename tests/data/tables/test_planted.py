"""The planted dictionary has the features, rates, sizes and labels that it states."""

from __future__ import annotations

import pytest
import torch

from repro.errors import UserError


def test_codes_can_be_read_back_and_are_as_stated(dataset):
    # Fewer features than dimensions, so that least squares finds the codes.
    data = dataset(
        "planted_dictionary", inert=20, influential=10, inert_active=5, influential_active=2,
        influential_size=0.4, noise=0.0, train_size=8000, data_seed=3,
    )  # fmt: skip
    x_ND, y_N = data.splits["train"]
    code_NF = torch.linalg.lstsq(data.features.T, x_ND.T).solution.T
    torch.testing.assert_close(code_NF @ data.features, x_ND, atol=1e-4, rtol=0)
    on_NF = code_NF > 0.01
    inert, influential = ~data.is_influential, data.is_influential
    assert (inert.sum(), influential.sum()) == (20, 10)
    assert on_NF[:, inert].sum(1).float().mean().item() == pytest.approx(5, abs=0.1)
    assert on_NF[:, influential].sum(1).float().mean().item() == pytest.approx(2, abs=0.1)
    large, small = (code_NF[:, kind][on_NF[:, kind]] for kind in (inert, influential))
    assert large.min() > 0.49
    assert large.max() < 1.51
    assert large.mean().item() == pytest.approx(1.0, abs=0.02)
    assert small.mean().item() == pytest.approx(0.4, abs=0.02)
    # The label is a function of the influential codes alone: a linear classifier of them learns it,
    # and one of the others does no better than the most frequent class.
    accuracies = []
    for kind in (influential, inert):
        torch.manual_seed(0)
        linear = torch.nn.Linear(int(kind.sum()), 10)
        optimizer = torch.optim.Adam(linear.parameters(), lr=0.3)
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(code_NF[:, kind]), y_N).backward()
            optimizer.step()
        accuracies.append((linear(code_NF[:, kind]).argmax(1) == y_N).float().mean().item())
    most_frequent = y_N.bincount().max().item() / len(y_N)
    assert accuracies[0] > 0.95
    assert accuracies[1] < most_frequent + 0.03


def test_the_seed_decides_everything(dataset):
    one, same, other = (
        dataset("planted_dictionary", data_seed=s, train_size=50) for s in (1, 1, 2)
    )
    assert torch.equal(one.features, same.features)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert not torch.equal(one.features, other.features)
    torch.testing.assert_close(one.features.norm(dim=1), torch.ones(128))


@pytest.mark.parametrize("wrong", [{"inert": 0}, {"influential_active": 17}, {"inert_active": 0}])
def test_bad_knobs(dataset, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataset("planted_dictionary", **wrong)


def test_noisy_copies_of_the_digits(dataset):
    plain, noisy = dataset("digits"), dataset("digits", noise=0.3, copies=4)
    (x, y), (x_noisy, y_noisy) = plain.splits["train"], noisy.splits["train"]
    assert torch.equal(y.repeat_interleave(4), y_noisy)
    shift = x_noisy - x.repeat_interleave(4, dim=0)
    pixel = (x.max() - x.min()).item()
    assert shift.std().item() == pytest.approx(0.3 * pixel, rel=0.02)
    assert not torch.equal(shift[0], shift[1])
    with pytest.raises(UserError, match="noise"):
        dataset("digits", noise=-1)


def test_digits_of_another_domain(dataset):
    plain, other = dataset("digits"), dataset("digits", invert=True, roll=1)
    (x, y), (x_other, y_other) = plain.splits["test"], other.splits["test"]
    assert torch.equal(y, y_other)
    black, white = x.min(), x.max()
    torch.testing.assert_close(x_other[..., 1:], (black + white - x)[..., :-1])
    torch.testing.assert_close(x_other[..., 0], (black + white - x)[..., -1])
