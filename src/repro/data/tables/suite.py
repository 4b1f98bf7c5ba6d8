"""Several small data sets as one: for studies whose unit is a whole set of data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from typing_extensions import override

from repro.data.base.iterators import Batch, EpochIterator
from repro.data.base.modules import SPLIT_NAMES, TensorData
from repro.errors import UserError

SuiteBatch = dict[str, Batch]


class Suite(LightningDataModule):
    """Hands out whole splits of several data sets: one batch ``{name: (x, y)}`` is an epoch.

    For procedures that look at all training data at once, or that cut their own mini-batches. The
    examples stand in their stored order.

    Args:
        sets: the data sets by name.
        **_facts: what configs mention and a suite does not use: ``task``, ``input_shape``,
            ``classes``, ``batch_size`` and ``info`` as other data sets have them, and the
            ``split``, ``test_size`` and ``val_size`` to which its sets refer.

    Raises:
        UserError: there is no set.
    """

    def __init__(self, sets: Mapping[str, TensorData], **_facts: Any) -> None:
        super().__init__()
        if not sets:
            raise UserError("A suite needs at least one data set: dataset.sets={name: …}.")
        self.sets = dict(sets)

    def setup(self, stage: str | None = None) -> None:
        """Loads every data set."""
        for data in self.sets.values():
            data.setup(stage)

    def whole(self, split: str) -> SuiteBatch:
        """All examples of ``train``, ``val`` or ``test``."""
        return {name: data.splits[split] for name, data in self.sets.items()}

    def train_dataloader(self) -> _Once:
        """Returns one batch of everything."""
        return _Once(self.whole("train"))

    def val_dataloader(self) -> _Once:
        """Returns one batch of everything."""
        return _Once(self.whole("val"))

    def test_dataloader(self) -> _Once:
        """Returns one batch of everything."""
        return _Once(self.whole("test"))

    def fingerprint(self) -> dict[str, Any]:
        """Returns a ``sha256`` over those of the sets, and the ``sizes`` of their splits."""
        prints = {name: data.fingerprint() for name, data in self.sets.items()}
        sha = hashlib.sha256("".join(each["sha256"] for each in prints.values()).encode())
        sizes = {
            split: sum(each["sizes"][split] for each in prints.values()) for split in SPLIT_NAMES
        }
        return {"name": "+".join(prints), "sha256": sha.hexdigest(), "sizes": sizes}


class _Once(EpochIterator):
    """Epochs of a single batch."""

    def __init__(self, batch: SuiteBatch) -> None:
        super().__init__()
        self.batch = batch

    def __len__(self) -> int:
        return 1

    @override
    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yields the batch, unless it was handed out already."""
        if start == 0:
            yield self.batch
