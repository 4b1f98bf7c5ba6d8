"""Batch iterators over tensors in memory: nearly free, a pure function of (seed, epoch), resumable.

`torch.utils.data.DataLoader` fetches example by example and collates; for data that lies in memory
one ``index_select`` per batch does the same work several times faster, and its order can be
recomputed from two integers, so that a resumed run sees the batches it would have seen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.errors import UserError

Batch = tuple[Tensor, ...]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def generator_for(*key: int) -> torch.Generator:
    """Returns a CPU generator that is a pure function of non-negative integers.

    `numpy.random.SeedSequence` mixes the key, so neighbouring keys give unrelated streams.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def process_rank() -> tuple[int, int]:
    """Returns (rank, world size) of this process: (0, 1) unless torch.distributed is running."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EpochIterator(ABC):
    """Epochs of batches that can be continued at any batch.

    Every ``iter()`` is one epoch. Epochs advance by themselves (0, 1, 2, …); `set_epoch` overrides.
    Lightning calls ``set_epoch`` on ``loader.sampler``, saves `state_dict` with its checkpoints and
    restores it, so a killed run continues in the middle of an epoch; a plain loop can do the same.

    Args:
        seed: non-negative; with the epoch it decides every order and every augmentation.
        rank: this process among `world_size`; both default to what torch.distributed says.
        world_size: number of processes that share each epoch.
    """

    batch_sampler = None  # Lightning reads it of whatever has a `sampler`

    def __init__(self, seed: int = 0, rank: int | None = None, world_size: int | None = None):
        here, everywhere = process_rank()
        self.seed = seed
        self.rank = here if rank is None else rank
        self.world_size = everywhere if world_size is None else world_size
        self._next = (0, 0)  # (epoch, batch) at which the next iter() starts
        self._reached = (0, 0)  # (epoch, batches handed out) of the epoch under way

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches in a whole epoch, also for an epoch continued half-way."""

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from batch `start` on; changes no state."""

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the epoch that is due.

        A generator on purpose: nothing happens before the first batch is asked for, because
        Lightning also calls ``iter()`` merely to see whether it works.
        """
        epoch, start = self._next
        self._next = (epoch + 1, 0)
        self._reached = (epoch, start)
        for index, batch in enumerate(self.batches(epoch, start), start=start):
            # Counted before it is handed over: a checkpoint is written after the batch was used.
            self._reached = (epoch, index + 1)
            yield batch

    @property
    def sampler(self) -> EpochIterator:
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Makes `epoch` the next one; a restored position inside that epoch stays."""
        if self._next[0] != epoch:
            self._next = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch, the batches of it handed out and the length of an epoch (ints)."""
        epoch, batch = self._reached
        return {"epoch": epoch, "batch": batch, "batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next ``iter()`` continue after the last batch that was handed out.

        Raises:
            UserError: the state lies inside an epoch of another length (another batch size,
                number of processes or data set), where batch numbers mean something else.
        """
        epoch, batch, batches = state["epoch"], state["batch"], state["batches"]
        if 0 < batch < batches and batches != len(self):
            raise UserError(
                f"The checkpoint stopped at batch {batch} of {batches} of an epoch; an epoch now"
                f" has {len(self)} batches.\nResume with the same data set, batch size and number"
                " of devices."
            )
        self._next = self._reached = (epoch, len(self) if batch == batches else batch)


class BatchIterator(EpochIterator):
    """Batches of tensors that share their first dimension.

    One permutation an epoch and one ``index_select`` per tensor and batch. Batches are copies: the
    caller may change them. With several processes each takes its own part of the permutation, and
    the union of batch t over W processes is batch t of one process with W times the batch size.

    Args:
        tensors: each of shape (N, …), all on one device.
        batch_size: examples per batch and process; more than there are means one batch of all.
        shuffle: a new permutation every epoch; otherwise the stored order.
        drop_last: leave out the last, smaller batch. Keep it on for training on several processes:
            without it some may have one batch fewer than others.
        augment: ``augment(x, generator)`` changes the first tensor of a batch at random; the
            generator is a function of (seed, epoch, rank, batch).
        normalise: applied to the first tensor of a batch after `augment`.
        seed: see `EpochIterator`; likewise `rank` and `world_size`.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: no tensors, first dimensions differ, or a batch size below one.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Augmentation | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        super().__init__(seed, rank, world_size)
        if len({len(tensor) for tensor in tensors}) != 1:
            raise ValueError(f"first dimensions differ: {[tuple(t.shape) for t in tensors]}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
        self.tensors = tuple(tensors)
        self.size = len(tensors[0])
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.augment = augment
        self.normalise = normalise
        # Every process must come to the same number of whole batches, hence the floor.
        self.batch_size = min(batch_size, max(1, self.size // self.world_size))

    def __len__(self) -> int:
        """Number of batches of an epoch on this process."""
        if self.drop_last:
            return self.size // (self.batch_size * self.world_size)
        mine = len(range(self.rank, self.size, self.world_size))
        return math.ceil(mine / self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Returns the indices (int64) that this process visits in an epoch, before `drop_last`."""
        if self.shuffle:
            order = torch.randperm(self.size, generator=generator_for(self.seed, epoch))
        else:
            order = torch.arange(self.size)
        return order[self.rank :: self.world_size]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields tuples of (B, …) tensors, from batch `start` of the epoch on."""
        order = self.order(epoch).to(self.tensors[0].device)
        for batch in range(start, len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            first, *rest = (tensor.index_select(0, indices) for tensor in self.tensors)
            if self.augment is not None:
                first = self.augment(first, generator_for(self.seed, epoch, self.rank, batch))
            if self.normalise is not None:
                first = self.normalise(first)
            yield (first, *rest)


class TokenIterator(EpochIterator):
    """Language-model batches (x_BT, y_BT) from one stream of tokens; y is x moved on by one.

    ``windows=False`` is the layout of truncated back-propagation through time: the stream is cut
    into one contiguous row per batch element, and consecutive batches continue each row, so that a
    recurrent state may be carried from batch to batch (reset it where an epoch starts).
    ``windows=True`` takes as many tokens an epoch from uniformly random places.

    Args:
        stream: (N,) integer tokens; handed out as int64.
        batch_size: rows per batch and process.
        sequence_length: T.
        windows: random places instead of contiguous rows.
        drop_last: leave out a last batch shorter than T (random windows never have one).
        seed: decides the places of ``windows=True``.
        rank: this process.
        world_size: number of processes; each has its own rows.

    Raises:
        ValueError: the stream is too short for one token in every row (for a whole sequence in
            every row with `drop_last` or `windows`).
    """

    def __init__(
        self,
        stream: Tensor,
        batch_size: int,
        sequence_length: int,
        *,
        windows: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        super().__init__(seed, rank, world_size)
        self.stream = stream
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.windows = windows
        self.drop_last = drop_last or windows
        self.row_length = (len(stream) - 1) // (batch_size * self.world_size)
        if len(self) < 1:
            raise ValueError(
                f"{len(stream)} tokens are too few for {batch_size * self.world_size} rows"
                f" of {sequence_length}"
            )

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        whole, rest = divmod(self.row_length, self.sequence_length)
        return whole if self.drop_last or rest == 0 else whole + 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields (x_BT, y_BT), from batch `start` of the epoch on; the last may be shorter."""
        place = self._windows(epoch) if self.windows else self._rows()
        for batch in range(start, len(self)):
            x_BT, y_BT = place(batch)
            yield x_BT.long(), y_BT.long()  # copies unless the stream is int64 already

    def _rows(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        rows = self.batch_size * self.world_size
        end = rows * self.row_length
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        x_BL = self.stream[:end].view(rows, self.row_length)[mine]
        y_BL = self.stream[1 : end + 1].view(rows, self.row_length)[mine]

        def place(batch: int) -> tuple[Tensor, Tensor]:
            span = slice(batch * self.sequence_length, (batch + 1) * self.sequence_length)
            return x_BL[:, span].clone(), y_BL[:, span].clone()

        return place

    def _windows(self, epoch: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        T = self.sequence_length
        starts = torch.randint(
            len(self.stream) - T,
            (len(self), self.world_size, self.batch_size, 1),
            generator=generator_for(self.seed, epoch),
        )[:, self.rank].to(self.stream.device)
        offsets_T = torch.arange(T, device=self.stream.device)

        def place(batch: int) -> tuple[Tensor, Tensor]:
            indices_BT = starts[batch] + offsets_T
            return self.stream[indices_BT], self.stream[indices_BT + 1]

        return place
