"""Encodings, counted bytes, ratios, and the network model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import UserError
from repro.methods.dgc import CommLedger, NetworkModel, Picks, make_encoding


def picks_of(*rows):
    return Picks.of_rows([torch.tensor(row) for row in rows])


@pytest.mark.parametrize(
    ("name", "expected"), [("paper_6B", 24), ("fp32_int64", 48), ("fp16_int32", 24)]
)
def test_bytes_per_entry(name, expected):
    picks = picks_of([3, 1, 2], [7])  # padding costs nothing
    assert make_encoding(name).sparse_bytes(picks, 1000) == expected


@pytest.mark.parametrize(
    ("row", "extra"),
    [
        ([0], 0),
        ([65_535], 0),  # 65535 zeros before it: the longest run
        ([65_536], 1),
        ([0, 65_536], 0),
        ([0, 65_537], 1),
        ([131_071], 1),
        ([131_072], 2),
        ([200_000, 0], 3),
    ],
)
def test_runs_too_long_for_16_bits_need_extra_entries(row, extra):
    nbytes = make_encoding("paper_6B").sparse_bytes(picks_of(row), 300_000)
    assert int(nbytes) == 6 * (len(row) + extra)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 999_999), min_size=1, max_size=20, unique=True))
def test_run_length_bytes_equal_a_real_encoder(positions):
    entries = 0
    run = 0
    last = -1
    for position in sorted(positions):
        run = position - last - 1
        while run > 65_535:
            entries += 1  # a zero value after 65535 zeros
            run -= 65_536
        entries += 1
        last = position
    two_rows = picks_of(positions, positions[:1])
    alone = make_encoding("paper_6B").sparse_bytes(picks_of(positions[:1]), 1_000_000)
    both = make_encoding("paper_6B").sparse_bytes(two_rows, 1_000_000)
    assert int(both) - int(alone) == 6 * entries


def test_only_fp16_rounds():
    x = torch.tensor([1 / 3, 1e-9, 70_000.0], dtype=torch.float64)
    assert torch.equal(make_encoding("paper_6B").rounded(x), x)
    rounded = make_encoding("fp16_int32").rounded(x)
    assert rounded.dtype == x.dtype
    assert rounded.tolist() == [pytest.approx(1 / 3, rel=1e-3), 0, float("inf")]
    assert rounded[0] != x[0]


def test_unknown_encoding_is_refused():
    with pytest.raises(UserError, match="Did you mean 'paper_6B'"):
        make_encoding("paper_6b")


def test_three_ratios_now_and_over_the_run():
    ledger = CommLedger(compressible=1000, always_dense=100, workers=2)
    assert ledger.summary() == {}
    ledger.book(entries=2 * 1000, sparse_bytes=2 * 4000, dense_bytes=2 * 400, steps=1)
    ledger.start_epoch()
    ledger.book(entries=2 * 10, sparse_bytes=torch.tensor(2 * 60), dense_bytes=2 * 400, steps=1)
    summary = ledger.summary()
    assert summary["bytes_per_step"] == 460
    assert summary["sparse_bytes_per_step"] == 60
    assert summary["dense_bytes_per_step"] == 400
    assert summary["ratio_by_count"] == 100
    assert summary["ratio_by_bytes"] == pytest.approx(4000 / 60)
    assert summary["ratio_whole_model"] == pytest.approx(4400 / 460)
    assert summary["density"] == 0.01
    assert summary["run_density"] == pytest.approx(0.505)
    assert summary["run_bytes_per_step"] == pytest.approx((4400 + 460) / 2)
    assert summary["run_ratio_whole_model"] == pytest.approx(8800 / 4860)
    other = CommLedger(1000, 100, 2)
    other.load_state_dict(ledger.state_dict())
    assert other.summary() == summary
    assert type(ledger.state_dict()["epoch"]["sparse_bytes"]) is int


def test_network_model_known_answers():
    network = NetworkModel(latency=0.001, bandwidth=1e6)
    assert network.all_gather_seconds(5, 1000) == pytest.approx(4 * (0.001 + 0.001))
    assert network.all_reduce_seconds(5, 1000) == pytest.approx(8 * (0.001 + 0.0002))
    assert network.all_reduce_seconds(1, 1000) == 0
    assert network.speed_up(1, 0.1, 1000, 1000) == 1
    assert network.speed_up(5, 0.1, 1000, 0) == pytest.approx(5 * 0.1 / 0.108)
    assert network.speed_up(5, 0.1, 0, 0) == 5


def test_sparse_exchange_on_a_slow_network_beats_dense_on_a_fast_one():
    """The paper's scalability claim, for AlexNet's size on 64 nodes."""
    slow, fast = NetworkModel(bandwidth=125e6), NetworkModel(bandwidth=1250e6)
    dense = 61e6 * 4
    assert slow.speed_up(64, 0.4, dense / 600, 0) > fast.speed_up(64, 0.4, 0, dense)
