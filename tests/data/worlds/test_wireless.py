"""Simulated channels: their statistics, and that batches follow from (seed, epoch, batch) alone."""

import itertools

import pytest
import torch

from repro.data.worlds.wireless import (
    CellFreeNetwork,
    CellularDownlink,
    correlating,
    scenario,
    strongest,
)
from repro.errors import UserError

SIZES = {
    "seen": {"3x6": {"users": 3, "antennas": 6}},
    "unseen": {"4x9": {"users": 4, "antennas": 9}},
}


def cellular(**knobs):
    settings = {"users": [2, 4], "antennas": 6, **SIZES, "batch_size": 5, "eval_size": 3, **knobs}
    return CellularDownlink("cellular", **settings)


def cellfree(**knobs):
    sizes = {
        "seen": {"5x3": {"access_points": 5, "users": 3}},
        "unseen": {"5x3_all": {"access_points": 5, "users": 3, "coverage": 1, "antennas": [8, 8]}},
    }
    settings = {"access_points": [4, 6], "users": [2, 3], "antennas": [1, 4], **sizes, **knobs}
    return CellFreeNetwork("cellfree", **{"batch_size": 5, "eval_size": 50, **settings})


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("make", [cellular, cellfree])
def test_a_batch_is_a_function_of_seed_epoch_and_number(make):
    first, again, other = (make(seed=seed).train_dataloader() for seed in (1, 1, 2))
    straight = list(itertools.islice(first.batches(epoch=3), 4))
    late = next(iter(again.batches(epoch=3, start=3)))
    assert equal(straight[3], late)
    assert not equal(straight[0], next(iter(first.batches(epoch=4))))
    assert not equal(straight[0], next(iter(other.batches(epoch=3))))


def test_an_epoch_continues_after_the_last_batch_that_was_used():
    loader, resumed = (cellular(train_batches=6).train_dataloader() for _ in range(2))
    epoch = iter(loader)
    for _ in range(2):
        next(epoch)
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert len(rest) == 4
    assert all(equal(a, b) for a, b in zip(rest, epoch, strict=True))


def test_sizes_stay_in_their_ranges_and_vary():
    shapes = {batch.H.shape[1:] for batch in cellular(user_antennas=[1, 1]).train_dataloader()}
    assert len(shapes) > 5
    assert all(2 <= K <= 4 and K <= M <= 6 for K, _, M in shapes)
    data = cellular()
    cell = next(iter(data.train_dataloader()))
    assert ((cell.snr >= 10**0.5) & (cell.snr <= 10**2.5)).all()
    assert cell.H is cell.known
    assert [each.name for each in data.test_cells] == ["3x6_10dB", "3x6_20dB", "4x9_10dB", "4x9_20dB"]  # fmt: skip  # noqa: E501
    assert [each.seen for each in data.val_cells] == [True, True]
    drawn = list(data.test_dataloader())
    assert drawn[2].H.shape == (3, 4, 1, 9)
    assert not equal(drawn[0], next(iter(data.val_dataloader())))


def test_channels_have_the_power_correlation_and_error_that_was_asked_for():
    knobs = {"spread_db": 0.0, "correlation": 0.7, "csi_error": 0.6, "eval_size": 20_000}
    cell = next(iter(cellular(**knobs).test_dataloader()))
    known = cell.known
    assert cell.H.abs().square().mean() == pytest.approx(1, abs=0.02)
    assert known.abs().square().mean() == pytest.approx(1, abs=0.02)
    # Neighbouring antennas of a user differ by a phase that is the user's own.
    lag = (known[..., 1:] * known[..., :-1].conj()).mean(-1).abs().mean()
    free = next(iter(cellular(spread_db=0.0, eval_size=20_000).test_dataloader())).known
    assert lag > 1.4 * (free[..., 1:] * free[..., :-1].conj()).mean(-1).abs().mean()
    assert (cell.H * known.conj()).mean().real == pytest.approx(0.8, abs=0.02)


def test_the_factor_is_that_of_exponential_correlation():
    L = correlating(5, 0.6).double()
    index = torch.arange(5)
    expected = 0.6 ** (index[:, None] - index).abs().double()
    torch.testing.assert_close(L @ L.T, expected, rtol=1e-5, atol=1e-6)


def test_networks_have_plausible_gains_and_clusters():
    data = cellfree()
    seen, unseen = data.test_dataloader()
    assert seen.beta.shape == (50, 5, 3)
    # 10 m below an access point: 30.5 + 36.7 dB of loss against 124 dB of noise below a watt.
    assert seen.beta.max() < 10 ** ((124 - 67.2 + 5 * 4) / 10)
    assert seen.mask.any(1).all()
    part = (seen.beta * seen.mask).sum(1) / seen.beta.sum(1)
    assert (part >= 0.9 - 1e-5).all()
    assert seen.mask.float().mean() < 0.9
    assert unseen.mask.all()
    assert (unseen.antennas == 8).all()
    assert seen.pilots[0].tolist() == [0, 1, 2]
    assert next(iter(cellfree(pilots=2).test_dataloader())).pilots[0].tolist() == [0, 1, 0]
    assert data.fingerprint()["sizes"] == {"train": 500, "val": 50, "test": 100}
    assert data.fingerprint() == cellfree().fingerprint() != cellfree(seed=1).fingerprint()


def test_the_strongest_that_suffice_serve():
    beta = torch.tensor([[[5.0], [3.0], [2.0]]])
    assert strongest(beta, 0.5)[0, :, 0].tolist() == [True, False, False]
    assert strongest(beta, 0.51)[0, :, 0].tolist() == [True, True, False]
    assert strongest(beta, 1.0)[0, :, 0].tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("make", "knobs", "complaint"),
    [
        (cellular, {"users": [4, 2]}, "dataset.users is a range"),
        (cellular, {"users": [0, 2]}, "from 1 on"),
        (cellular, {"antennas": 3}, "fewer than the 4 receiving antennas"),
        (cellular, {"correlation": 1.0}, "correlation lies in"),
        (cellular, {"batch_size": 0}, "batch_size is a whole number"),
        (cellfree, {"antennas": [1]}, "dataset.antennas is a range"),
        (cellfree, {"pilots": 0}, "pilots is a whole number of at least 1 or null"),
    ],
)
def test_bad_knobs_are_refused(make, knobs, complaint):
    with pytest.raises(UserError, match=complaint):
        make(**knobs)


def test_bad_sizes_and_kinds_are_refused():
    with pytest.raises(UserError, match="only 2 at the base station"):
        cellular(unseen={"3x2": {"users": 3, "antennas": 2}}).cells()
    with pytest.raises(UserError, match="coverage lies in"):
        next(iter(cellfree(coverage=0).train_dataloader()))
    data = cellular()
    assert scenario("cellular", cellular=data, task=None) is data
    with pytest.raises(UserError, match="Did you mean 'cellular'"):
        scenario("celular", cellular=data)
