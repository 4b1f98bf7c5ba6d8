"""Batches from memory against PyTorch's own DataLoader over the same tensors."""

from __future__ import annotations

import torch
from timing import faster
from torch.utils.data import DataLoader, TensorDataset

from repro.data.base.iterators import BatchIterator


def test_batch_iterator() -> None:
    images, labels = torch.rand(1293, 1, 8, 8), torch.randint(10, (1293,))
    ours = BatchIterator((images, labels), 64, shuffle=True, drop_last=True)
    theirs = DataLoader(TensorDataset(images, labels), 64, shuffle=True, drop_last=True)
    faster("an epoch of batches", lambda: list(ours), lambda: list(theirs), 5)
