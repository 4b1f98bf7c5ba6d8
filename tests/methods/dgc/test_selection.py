"""Selectors: exact counts, sampled bounds, the official rules re-derived, the compressor."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import UserError
from repro.methods.dgc import (
    ExactSelector,
    OfficialSampledSelector,
    Picks,
    RandomKey,
    RandomSelector,
    SampledSelector,
    TopKCompressor,
    entries_to_send,
    make_selector,
)
from repro.methods.dgc import selection as selection_module


@pytest.mark.parametrize(
    ("numel", "density", "expected"),
    [
        (84_480, 0.001, 85),
        (16_384, 0.001, 17),
        (65_536, 0.001, 66),
        (2_560, 0.001, 3),
        (100, 0.07, 7),  # 100 * 0.07 > 7 in floating point
        (3_000, 0.1, 300),
        (5, 0.001, 1),
        (7, 1.0, 7),
    ],
)
def test_entries_to_send_is_the_exact_ceiling(numel, density, expected):
    assert entries_to_send(numel, density) == expected


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 3),
    numel=st.integers(1, 200),
    density=st.sampled_from([0.001, 0.05, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 100),
)
def test_exact_selector_returns_the_largest_entries(rows, numel, density, seed):
    x = torch.randn(rows, numel, generator=torch.Generator().manual_seed(seed))
    picks = ExactSelector()(x, density, RandomKey())
    count = entries_to_send(numel, density)
    assert picks.index.shape == (rows, count)
    assert picks.counts == (count,) * rows
    for row in range(rows):
        expected = sorted(range(numel), key=lambda i: -abs(x[row, i].item()))[:count]
        assert sorted(picks.index[row].tolist()) == sorted(expected)


@pytest.mark.parametrize("density", [0.002, 0.01, 0.2])
@pytest.mark.parametrize(
    "kind", ["normal", "double", "bfloat16", "cauchy", "kernels", "zeros", "seen too well"]
)
def test_exact_selector_of_large_tensors(kind: str, density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, divisor = torch.randn(2, 2, 40_000, generator=generator)
    if kind == "cauchy":
        x = x / divisor
    elif kind == "kernels":  # every ninth entry is larger
        x[:, ::9] *= 10
    elif kind == "zeros":  # fewer others than are wanted
        x[divisor < 3.5] = 0
    elif kind == "seen too well":  # any sample sees large ones alone: too few reach its threshold
        for stride in range(7, 98, 6):
            x[:, ::stride] += 100
    elif kind in ("double", "bfloat16"):
        x = x.to(getattr(torch, kind))
    picks = ExactSelector()(x, density, RandomKey())
    count = entries_to_send(40_000, density)
    assert picks.counts == (count, count)
    for row, index in zip(x, picks.index, strict=True):
        assert len(index.unique()) == count
        expected = row.abs().sort(descending=True).values[:count]
        assert torch.equal(row[index].abs().sort(descending=True).values, expected)


@pytest.mark.parametrize(("count", "reached"), [(400, (400, 1600)), (8000, (9500, 14_000))])
def test_large_tensors_are_sorted_whole_only_when_the_sample_misleads(
    count: int, reached: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample of a hundredth tells 8000 to within 4 x 880, upwards."""
    x = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    sizes = []

    def sorted_out(x_Kn: torch.Tensor, count: int) -> torch.Tensor:
        sizes.append(x_Kn.shape[-1])
        return x_Kn.abs().topk(count).indices

    monkeypatch.setattr(selection_module, "_sorted_out", sorted_out)
    ExactSelector()(x, count / 40_000, RandomKey())
    assert reached[0] <= sizes.pop() < reached[1]
    ExactSelector()(torch.ones(1, 40_000), count / 40_000, RandomKey())
    assert sizes == [40_000]


def test_random_selector_draws_distinct_entries_independently_of_the_values():
    x = torch.randn(3, 1000)
    key = RandomKey(seed=1, step=2, tensor=3)
    picks = RandomSelector()(x, 0.05, key)
    assert picks.index.shape == (3, 50)
    assert all(len(set(row.tolist())) == 50 for row in picks.index)
    assert torch.equal(picks.index, RandomSelector()(torch.zeros(3, 1000), 0.05, key).index)
    assert not torch.equal(picks.index[0], picks.index[1])
    # Worker 1 draws the same whether it is row 1 here or alone in its process.
    alone = RandomSelector()(x[1:2], 0.05, RandomKey(seed=1, step=2, tensor=3, worker=1))
    assert torch.equal(alone.index[0], picks.index[1])
    # Every entry is as likely as any other.
    hits = torch.zeros(100)
    for step in range(400):
        hits[RandomSelector()(torch.zeros(1, 100), 0.1, RandomKey(step=step)).index[0]] += 1
    assert hits.sum() == 4000
    assert (hits - 40).abs().max() < 5 * math.sqrt(40)


@pytest.mark.parametrize("distribution", ["normal", "cauchy"])
def test_sampled_selector_stays_close_to_the_wanted_number(distribution):
    generator = torch.Generator().manual_seed(3)
    numel, density = 300_000, 0.002
    wanted = entries_to_send(numel, density)
    counts = []
    for step in range(20):
        x = torch.empty(1, numel)
        (x.normal_ if distribution == "normal" else x.cauchy_)(generator=generator)
        picks = SampledSelector(0.01)(x, density, RandomKey(step=step))
        counts.append(picks.counts[0])
        sent = x[0, picks.index[0]].abs().min()
        rest = x[0].clone()
        rest[picks.index[0]] = 0
        assert rest.abs().max() <= sent  # whatever the count, the largest ones are sent
    assert all(0.6 * wanted <= count <= 1.3 * wanted for count in counts)
    assert sum(0.8 * wanted <= count for count in counts) >= 18
    assert abs(sum(counts) / len(counts) / wanted - 1) < 0.1


def test_sampled_selector_falls_back_to_an_exact_top_k_when_far_more_pass():
    # All entries are equal: whatever the sample, all of them reach the threshold.
    picks = SampledSelector(0.01)(torch.ones(2, 50_000), 0.01, RandomKey())
    assert picks.counts == (500, 500)


def test_sampled_selector_is_exact_for_small_tensors():
    x = torch.randn(2, 1500)
    picks = SampledSelector(0.01)(x, 0.01, RandomKey())
    exact = ExactSelector()(x, 0.01, RandomKey())
    assert torch.equal(picks.index.sort().values, exact.index.sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scanning_in_pieces_changes_nothing(monkeypatch, dtype):
    x = torch.randn(1000, dtype=dtype)
    threshold = torch.tensor(1.5)
    at_once = selection_module._reaching(x, threshold)
    monkeypatch.setattr(selection_module, "_PIECE", 64)
    assert torch.equal(selection_module._reaching(x, threshold), at_once)
    assert at_once.tolist() == [i for i, value in enumerate(x.tolist()) if abs(value) >= 1.5]


def official_by_hand(x, density, sample_ratio, draw):
    """The released code's rules, written down a second time with lists and loops."""
    numel = len(x)
    magnitude = [abs(value) for value in x]
    wanted = math.ceil(numel * density)
    fewest = math.ceil(2 / density)
    if numel <= fewest:
        stride, samples = 1, numel
    else:
        enough = max(math.ceil(numel * sample_ratio), fewest)
        stride = math.ceil(numel / enough / 32) * 32 + 1
        samples = numel // stride
        while samples < enough:
            stride -= 8
            samples = numel // stride
    sample = [magnitude[i] for i in range(draw % stride, numel, stride)]
    threshold = sorted(sample, reverse=True)[math.ceil(samples * density) - 1]
    chosen = [i for i in range(numel) if magnitude[i] >= threshold]
    rounds = 0
    while numel > samples and rounds < 10:
        rounds += 1
        if len(chosen) > 1.3 * wanted:
            return sorted(chosen, key=lambda i: -magnitude[i])[:wanted]
        if len(chosen) >= 0.8 * wanted:
            break
        threshold *= 0.8
        chosen = [i for i in range(numel) if magnitude[i] >= threshold]
    return chosen[:wanted]


@settings(deadline=None, max_examples=60)
@given(
    numel=st.integers(2, 900),
    density=st.sampled_from([0.01, 0.03125, 0.125, 0.25]),
    sample_ratio=st.sampled_from([0.01, 0.1, 0.5]),
    power=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_official_selector_follows_the_released_rules(numel, density, sample_ratio, power, seed):
    x = torch.randn(2, numel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x.sign() * x.abs() ** power
    key = RandomKey(seed=seed)
    picks = OfficialSampledSelector(sample_ratio)(x, density, key)
    for row in range(2):
        expected = official_by_hand(x[row].tolist(), density, sample_ratio, key.integer(row))
        assert sorted(picks.index[row, : picks.counts[row]].tolist()) == sorted(expected)


def test_official_selector_bounds_and_index_bias():
    x = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    wanted = 400
    truncated = 0
    for step in range(30):
        picks = OfficialSampledSelector(0.01)(x, 0.01, RandomKey(step=step))
        assert 0.8 * wanted <= picks.counts[0] <= wanted
        chosen = set(picks.index[0].tolist())
        weakest = x[0, picks.index[0]].abs().min()
        skipped = [i for i in (x[0].abs() > weakest).nonzero().view(-1).tolist() if i not in chosen]
        if skipped:  # truncated in index order: only the highest indices miss out
            truncated += 1
            assert min(skipped) > max(chosen)
    assert truncated > 0


def test_uneven_rows_are_padded_harmlessly():
    picks = Picks.of_rows([torch.tensor([4, 1, 3]), torch.tensor([2])])
    assert picks.counts == (3, 1)
    assert picks.index.tolist() == [[4, 1, 3], [2, 2, 2]]
    x = torch.arange(10.0).view(2, 5)
    assert picks.values(x).tolist() == [[4, 1, 3], [7, 0, 0]]
    wider = picks.padded(4)
    assert wider.values(x).tolist() == [[4, 1, 3, 0], [7, 0, 0, 0]]
    assert wider.index.tolist() == [[4, 1, 3, 4], [2, 2, 2, 2]]


@pytest.mark.parametrize("name", ["exact", "random", "sampled", "sampled_official"])
def test_every_selector_survives_nan_and_zeros(name):
    for value in (float("nan"), 0.0):
        x = torch.full((2, 5000), value)
        picks = make_selector(name)(x, 0.05, RandomKey())
        assert picks.counts == (250, 250)


def test_compressor_round_trip():
    x = torch.tensor([[0.1, -5.0], [0.2, 3.0]])
    sparse = TopKCompressor(0.5).compress(x)
    assert sparse.shape == x.shape
    assert sorted(sparse.indices.tolist()) == [1, 3]
    expected = torch.tensor([[0.0, -5.0], [0.0, 3.0]])
    assert torch.equal(TopKCompressor.decompress(sparse), expected)
    out = torch.full((2, 2), 9.0)
    assert TopKCompressor.decompress(sparse, out) is out
    assert torch.equal(out, expected)
    assert torch.equal(TopKCompressor.decompress(TopKCompressor(1.0).compress(x)), x)


def test_unknown_selector_and_bad_ratios_are_refused():
    with pytest.raises(UserError, match="Did you mean 'sampled'"):
        make_selector("samples")
    with pytest.raises(UserError, match="sample_ratio"):
        make_selector("sampled", sample_ratio=0)
    with pytest.raises(UserError, match="ratio"):
        TopKCompressor(0)


def test_random_key_separates_seed_step_tensor_and_worker():
    draws = {
        RandomKey(seed, step, tensor, worker).integer(row)
        for seed in range(3)
        for step in range(3)
        for tensor in range(3)
        for worker in (0, 10)
        for row in range(3)
    }
    assert len(draws) == 3 * 3 * 3 * 2 * 3
    assert RandomKey(worker=2).integer(1) == RandomKey(worker=0).integer(3)
