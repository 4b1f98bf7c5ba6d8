"""Batches from memory against PyTorch's own DataLoader over the same tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from repro.data.base.iterators import BatchIterator

pytestmark = pytest.mark.benchmark


def test_batch_iterator_is_faster_than_the_data_loader() -> None:
    torch.set_num_threads(1)
    images, labels = torch.rand(1293, 1, 8, 8), torch.randint(10, (1293,))
    ours = BatchIterator((images, labels), 64, shuffle=True, drop_last=True)
    theirs = DataLoader(TensorDataset(images, labels), 64, shuffle=True, drop_last=True)
    ours_us, theirs_us = _microseconds_per_batch(ours), _microseconds_per_batch(theirs)
    print(
        f"\nBatchIterator {ours_us:.1f} µs a batch, DataLoader {theirs_us:.1f} µs: "
        f"{theirs_us / ours_us:.1f} times as fast"
    )
    assert theirs_us > 5 * ours_us


def _microseconds_per_batch(loader: Iterable[object], epochs: int = 7) -> float:
    times = []
    for _ in range(epochs):
        start = time.perf_counter()
        batches = sum(1 for _ in loader)
        times.append((time.perf_counter() - start) / batches)
    return 1e6 * min(times)
