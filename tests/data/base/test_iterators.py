"""Order, resumption, distribution and cost-free augmentation of the batch iterators."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from repro.data.base.iterators import BatchIterator, EpochIterator, TokenIterator, generator_for
from repro.errors import UserError

sizes = st.integers(1, 40)
few = st.integers(1, 9)


def indices(size: int, batch_size: int, **how) -> BatchIterator:
    """An iterator whose only tensor is the index of each example."""
    return BatchIterator((torch.arange(size),), batch_size, **how)


def seen(batches) -> list[int]:
    return [i for batch in batches for i in batch[0].tolist()]


@given(size=sizes, batch_size=few, seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation(size, batch_size, seed, epoch):
    iterator = indices(size, batch_size, shuffle=True, seed=seed)
    assert sorted(seen(iterator.batches(epoch))) == list(range(size))


@given(size=sizes, batch_size=few, drop_last=st.booleans(), shuffle=st.booleans())
def test_length_and_batch_sizes(size, batch_size, drop_last, shuffle):
    iterator = indices(size, batch_size, drop_last=drop_last, shuffle=shuffle)
    batches = list(iterator)
    assert len(batches) == len(iterator)
    whole = [len(batch[0]) for batch in batches[:-1]]
    assert all(length == iterator.batch_size for length in whole)
    if drop_last:
        assert len(batches[-1][0]) == iterator.batch_size


@given(
    size=sizes,
    batch_size=few,
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_are_disjoint_and_cover(size, batch_size, world, shuffle, epoch):
    parts = [
        seen(indices(size, batch_size, shuffle=shuffle, rank=r, world_size=world).batches(epoch))
        for r in range(world)
    ]
    assert sorted(itertools.chain(*parts)) == list(range(size))


@given(size=sizes, batch_size=few, world=st.integers(1, 4))
def test_ranks_have_equally_many_training_batches(size, batch_size, world):
    lengths = {
        len(indices(size, batch_size, drop_last=True, rank=r, world_size=world))
        for r in range(world)
    }
    assert len(lengths) == 1


def test_two_ranks_together_see_the_batches_of_one_process():
    one = list(indices(50, 8, shuffle=True, drop_last=True))
    two = [list(indices(50, 4, shuffle=True, drop_last=True, rank=r, world_size=2)) for r in (0, 1)]
    for whole, left, right in zip(one, *two, strict=True):
        assert set(whole[0].tolist()) == set(left[0].tolist()) | set(right[0].tolist())


@settings(deadline=None)
@given(size=sizes, batch_size=few, stop=st.integers(0, 30), noise=st.booleans())
def test_resuming_anywhere_equals_a_straight_run(size, batch_size, stop, noise):
    def make() -> BatchIterator:
        return BatchIterator(
            (torch.arange(size).float(),),
            batch_size,
            shuffle=True,
            seed=3,
            augment=(lambda x, g: x + torch.rand(len(x), generator=g)) if noise else None,
        )

    def endless(iterator: BatchIterator):
        while True:
            yield from iterator

    straight = [b[0] for b in itertools.islice(endless(make()), stop + 25)]
    first = make()
    consumed = [b[0] for b in itertools.islice(endless(first), stop)]
    second = make()
    second.load_state_dict(first.state_dict())
    resumed = [b[0] for b in itertools.islice(endless(second), 25)]
    assert all(map(torch.equal, straight, consumed + resumed))


def test_epochs_advance_by_themselves_and_differ():
    iterator = indices(100, 100, shuffle=True)
    first, second = seen(iterator), seen(iterator)
    assert first != second
    iterator.set_epoch(0)
    assert seen(iterator) == first
    iterator.set_epoch(0)
    assert seen(iterator) == first


def test_an_abandoned_epoch_is_not_continued():
    iterator = indices(10, 2)
    next(iter(iterator))
    assert seen(iterator) == list(range(10))


def test_calling_iter_without_using_it_changes_nothing():
    iterator = indices(10, 2, shuffle=True)
    before = iterator.state_dict()
    iter(iterator)
    assert iterator.state_dict() == before


def test_set_epoch_keeps_a_restored_position_only_within_that_epoch():
    iterator = indices(10, 2)
    iterator.load_state_dict({"epoch": 4, "batch": 3, "batches": 5})
    iterator.set_epoch(4)
    assert seen(iterator) == [6, 7, 8, 9]
    iterator.load_state_dict({"epoch": 4, "batch": 3, "batches": 5})
    iterator.set_epoch(5)
    assert len(seen(iterator)) == 10


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    iterator = indices(10, 2)
    next(iter(iterator))
    torch.save(iterator.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == iterator.state_dict()


def test_a_position_in_an_epoch_of_another_length_is_refused():
    iterator = indices(10, 2)
    with pytest.raises(UserError, match="batch 3 of 7 of an epoch; an epoch now has 5"):
        iterator.load_state_dict({"epoch": 0, "batch": 3, "batches": 7})
    iterator.load_state_dict({"epoch": 0, "batch": 7, "batches": 7})  # at a boundary: harmless
    assert seen(iterator) == []
    assert iterator.state_dict()["epoch"] == 0
    assert len(seen(iterator)) == 10


def test_a_batch_may_be_changed_in_place():
    x = torch.zeros(4)
    for (batch,) in BatchIterator((x,), 2):
        batch += 1
    assert x.sum() == 0


def test_too_large_a_batch_is_the_whole_split():
    (batch,) = indices(7, 100, drop_last=True)
    assert len(batch[0]) == 7


def test_tensors_must_agree():
    with pytest.raises(ValueError, match="first dimensions differ"):
        BatchIterator((torch.zeros(3), torch.zeros(4)), 2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        indices(3, 0)


def test_order_is_that_of_the_unshuffled_dataloader():
    mine = [batch[0] for batch in indices(11, 4)]
    theirs = list(DataLoader(torch.arange(11), batch_size=4))  # type: ignore[arg-type]
    assert all(map(torch.equal, mine, theirs))


def test_generators_are_pure_functions_of_their_key():
    def draw(*key):
        return torch.rand(4, generator=generator_for(*key))

    assert torch.equal(draw(1, 2), draw(1, 2))
    assert not torch.equal(draw(1, 2), draw(2, 1))
    assert not torch.equal(draw(1, 2), draw(1, 3))


class TestTokenIterator:
    stream = torch.arange(101, dtype=torch.uint8)

    def test_rows_are_contiguous_and_targets_move_on_by_one(self):
        batches = list(TokenIterator(self.stream, 4, 10))
        x_BL = torch.cat([x for x, _ in batches], dim=1)
        y_BL = torch.cat([y for _, y in batches], dim=1)
        assert torch.equal(x_BL, torch.arange(100).view(4, 25))
        assert torch.equal(y_BL, x_BL + 1)
        assert [x.shape[1] for x, _ in batches] == [10, 10, 5]
        assert x_BL.dtype == torch.int64

    def test_drop_last_leaves_out_the_short_batch(self):
        assert [len(x[0]) for x, _ in TokenIterator(self.stream, 4, 10, drop_last=True)] == [10, 10]

    def test_ranks_have_their_own_rows(self):
        rows = [list(TokenIterator(self.stream, 2, 25, rank=r, world_size=2)) for r in (0, 1)]
        both = torch.cat([batches[0][0] for batches in rows])
        assert torch.equal(both, torch.arange(100).view(4, 25))

    def test_windows_are_a_function_of_the_epoch_and_split_over_ranks(self):
        def make(rank: int) -> EpochIterator:
            return TokenIterator(self.stream, 3, 5, windows=True, seed=1, rank=rank, world_size=2)

        first = list(make(0).batches(0))
        assert len(first) == len(make(0)) == 3
        assert all(torch.equal(y, x + 1) for x, y in first)
        assert all(map(torch.equal, first[1], next(make(0).batches(0, start=1))))
        assert not torch.equal(first[0][0], next(make(0).batches(1))[0])
        assert not torch.equal(first[0][0], next(make(1).batches(0))[0])

    @settings(deadline=None)
    @given(stop=st.integers(0, 12), windows=st.booleans())
    def test_resuming_anywhere_equals_a_straight_run(self, stop, windows):
        def make() -> EpochIterator:
            return TokenIterator(self.stream, 4, 6, windows=windows)

        def endless(iterator):
            while True:
                yield from iterator

        straight = list(itertools.islice(endless(make()), stop + 6))
        first, second = make(), make()
        consumed = list(itertools.islice(endless(first), stop))
        second.load_state_dict(first.state_dict())
        resumed = list(itertools.islice(endless(second), 6))
        for (x, y), (x_too, y_too) in zip(straight, consumed + resumed, strict=True):
            assert torch.equal(x, x_too)
            assert torch.equal(y, y_too)

    def test_a_batch_may_be_changed_in_place(self):
        stream = torch.arange(30)
        for x, _ in TokenIterator(stream, 2, 5):
            x += 1
        assert torch.equal(stream, torch.arange(30))

    def test_too_short_a_stream(self):
        with pytest.raises(ValueError, match="101 tokens are too few for 4 rows of 26"):
            TokenIterator(self.stream, 4, 26, drop_last=True)


def test_rank_and_world_size_come_from_torch_distributed(monkeypatch):
    assert (indices(9, 2).rank, indices(9, 2).world_size) == (0, 1)
    for name, value in {"is_initialized": True, "get_rank": 1, "get_world_size": 3}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert seen(indices(9, 2)) == [1, 4, 7]
