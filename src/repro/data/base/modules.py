"""What the engine sees of a data set: a LightningDataModule that knows facts about itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import BatchIterator, TokenIterator, generator_for
from repro.data.base.transforms import CropFlip, Normalise
from repro.errors import UserError
from repro.knobs import Count, checked

Split = tuple[Tensor, ...]
Splits = Mapping[str, Split]
SPLIT_NAMES = ("train", "val", "test")


def digest(tensors: Sequence[Tensor]) -> str:
    """Returns a sha256 over the types, shapes and contents of tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        # As bytes: numpy knows neither bfloat16 nor any tensor off the CPU.
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def check_fact(dataset: str, fact: str, stated: Any, found: Any) -> None:
    """Compares what a config states about a data set with what the data show.

    Raises:
        UserError: they differ.
    """
    if stated != found:
        raise UserError(
            f"Data set '{dataset}': the config says {fact}={stated}, the data have {fact}={found}."
        )


def _fingerprint(
    name: str, splits: Splits, source_digest: Callable[[], str] | None
) -> dict[str, Any]:
    if source_digest is not None:
        sha = source_digest()
    else:
        sha = digest([tensor for split in SPLIT_NAMES for tensor in splits[split]])
    sizes = {split: len(splits[split][0]) for split in SPLIT_NAMES}
    return {"name": name, "sha256": sha, "sizes": sizes}


class TensorData(LightningDataModule):
    """A data set whose splits are tensors in memory.

    Args:
        name: of the data set.
        splits: ``{"train": (x, y), "val": …, "test": …}``, or a function that returns it and is
            called once, in `setup`. All tensors of a split share their first dimension. For
            classification y is (N,) int64, for regression (N, targets) float.
        task: what y means.
        input_shape: shape of one input, checked against the data.
        classes: number of classes, checked against all labels.
        targets: number of regression targets, checked.
        target_std: standard deviation that each target had before it was standardised; an error
            times this is in the unit of the target. None where targets are as published.
        batch_size: training examples per step and process.
        eval_batch_size: examples per validation or test step.
        seed: of the training order and the augmentation; the splits do not depend on it.
        augment: arguments of `repro.data.base.transforms.CropFlip`, or None.
        normalise: arguments of `repro.data.base.transforms.Normalise`, or None for data that
            already are what a model takes.
        on_device: keep all splits on the trainer's accelerator when they take at most half of its
            free memory; batches are then made there and nothing is copied during training.
        source_digest: returns the sha256 of the files the tensors come from; None to compute it
            from the tensors.
        info: source, licence and size, for `repro.data.base.catalog`; not used here.
    """

    name: str

    @checked
    def __init__(
        self,
        name: str,
        splits: Splits | Callable[[], Splits],
        *,
        task: Literal["classification", "regression", "segmentation", "registration", "detection"],
        input_shape: Sequence[int] | None = None,
        classes: int | None = None,
        targets: int | None = None,
        target_std: Sequence[float] | None = None,
        batch_size: Count = 64,
        eval_batch_size: Count = 512,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        normalise: Mapping[str, Any] | None = None,
        on_device: bool = False,
        source_digest: Callable[[], str] | None = None,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ):
        super().__init__()
        self.name = name
        self.task = task
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.classes = classes
        self.targets = targets
        self.target_std = None if target_std is None else torch.tensor(target_std)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.augment = None if augment is None else CropFlip(**augment)
        self.normalise = None if normalise is None else Normalise(**normalise)
        self.on_device = on_device
        self.source_digest = source_digest
        self._load = splits if callable(splits) else lambda: splits
        self._splits: dict[str, Split] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The tensors of ``train``, ``val`` and ``test``; loads them when needed."""
        self.setup()
        assert self._splits is not None
        return self._splits

    def prepare_data(self) -> None:
        """Loads on one process before the others do, so that it alone fills the disk cache."""
        self.setup()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Loads the tensors and checks the config's facts against them; does so once.

        A `UserError` says so if the data are missing, or a fact is wrong.
        """
        if self._splits is not None:
            return
        splits = {name: tuple(tensors) for name, tensors in self._load().items()}
        self._check(splits)
        self._splits = splits

    def _check(self, splits: Splits) -> None:
        x, y = splits["train"][:2]
        if self.input_shape is not None:
            check_fact(self.name, "input_shape", list(self.input_shape), list(x.shape[1:]))
        if self.classes is not None:
            # Targets of detection begin with the class.
            labels = torch.cat(
                [s[1] if s[1].dim() == 1 else s[1][..., 0].flatten() for s in splits.values()]
            )
            check_fact(self.name, "classes", self.classes, int(labels.max()) + 1)
        if self.targets is not None:
            check_fact(self.name, "targets", self.targets, y[0].numel())

    def _placed(self, split: str) -> Split:
        tensors = self.splits[split]
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if not self.on_device or device.type != "cuda" or tensors[0].device == device:
            return tensors
        needed = sum(t.nbytes for part in self.splits.values() for t in part if not t.is_cuda)
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free / 2:
            return tensors
        self.splits[split] = tuple(tensor.to(device) for tensor in tensors)
        return self.splits[split]

    def train_dataloader(self) -> BatchIterator:
        """Returns shuffled, augmented batches (x, y); a last, smaller batch is left out."""
        return BatchIterator(
            self._placed("train"),
            self.batch_size,
            shuffle=True,
            drop_last=True,
            augment=self.augment,
            normalise=self.normalise,
            seed=self.seed,
        )

    def _eval_dataloader(self, split: str) -> BatchIterator:
        return BatchIterator(self._placed(split), self.eval_batch_size, normalise=self.normalise)

    def val_dataloader(self) -> BatchIterator:
        """Returns the validation split in its stored order."""
        return self._eval_dataloader("val")

    def test_dataloader(self) -> BatchIterator:
        """Returns the test split in its stored order."""
        return self._eval_dataloader("test")

    def labels(self, split: str) -> Tensor:
        """Returns all targets of a split, in its stored order."""
        return self.splits[split][1]

    def take(self, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (x, y) of chosen examples, normalised and not augmented."""
        x, y = self.splits[split][:2]
        chosen = x[indices]
        return (chosen if self.normalise is None else self.normalise(chosen)), y[indices]

    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` of the files or tensors, and ``sizes`` of the splits."""
        return _fingerprint(self.name, self.splits, self.source_digest)


class TextData(LightningDataModule):
    """A data set of token streams for language models.

    Args:
        name: of the data set.
        streams: a function that returns ``{"train": (N,), "val": …, "test": …}``, integer tokens.
        task: always ``"language"``; in the config for models to read.
        vocab_size: number of different tokens, checked to cover every token.
        batch_size: training sequences per step and process.
        eval_batch_size: sequences per validation or test step.
        sequence_length: tokens per sequence and step.
        windows: train on random windows instead of contiguous rows (`TokenIterator`).
        seed: of the random windows.
        source_digest: returns the sha256 of the files; None to compute it from the tokens.
        info: source, licence and size, for `repro.data.base.catalog`; not used here.
    """

    name: str

    @checked
    def __init__(
        self,
        name: str,
        streams: Callable[[], Mapping[str, Tensor]],
        *,
        task: Literal["language"] = "language",
        vocab_size: Count,
        batch_size: Count = 32,
        eval_batch_size: Count = 32,
        sequence_length: Count = 64,
        windows: bool = False,
        seed: int = 0,
        source_digest: Callable[[], str] | None = None,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ):
        super().__init__()
        self.name = name
        self.task = task
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.sequence_length = sequence_length
        self.windows = windows
        self.seed = seed
        self.source_digest = source_digest
        self._load = streams
        self._streams: dict[str, Tensor] | None = None

    @property
    def streams(self) -> dict[str, Tensor]:
        """The tokens of ``train``, ``val`` and ``test``; loads them when needed."""
        self.setup()
        assert self._streams is not None
        return self._streams

    @override
    def setup(self, stage: str | None = None) -> None:
        """Loads the streams and checks the vocabulary; does so once.

        A `UserError` says so if the data are missing, or a token lies outside the vocabulary.
        """
        if self._streams is not None:
            return
        streams = dict(self._load())
        largest = max(int(stream.max()) for stream in streams.values())
        if largest >= self.vocab_size:
            check_fact(self.name, "vocab_size", self.vocab_size, largest + 1)
        self._streams = streams

    def _iterator(self, split: str, batch_size: int, **settings: Any) -> TokenIterator:
        try:
            return TokenIterator(self.streams[split], batch_size, self.sequence_length, **settings)
        except ValueError as error:
            raise UserError(f"Data set '{self.name}', {split} split: {error}.") from error

    def train_dataloader(self) -> TokenIterator:
        """Returns (x_BT, y_BT) batches; a last batch shorter than T is left out."""
        return self._iterator(
            "train", self.batch_size, windows=self.windows, drop_last=True, seed=self.seed
        )

    def val_dataloader(self) -> TokenIterator:
        """Returns the validation stream in contiguous rows."""
        return self._iterator("val", self.eval_batch_size)

    def test_dataloader(self) -> TokenIterator:
        """Returns the test stream in contiguous rows."""
        return self._iterator("test", self.eval_batch_size)

    def sample(self, count: int, length: int, seed: int) -> Tensor:
        """Returns (count, length) int64 training tokens from random places, to calibrate with.

        Args:
            count: of sequences; they may overlap.
            length: tokens of each.
            seed: decides the places, and nothing else does.

        Raises:
            UserError: the training text is shorter than one sequence.
        """
        stream = self.streams["train"]
        places = len(stream) - length + 1
        if places < 1:
            raise UserError(
                f"Data set '{self.name}' has {len(stream)} training tokens: too few for {length}."
            )
        starts = torch.randint(places, (count, 1), generator=generator_for(seed))
        return stream[starts + torch.arange(length)].long()

    def cut(self, split: str, length: int, most: int | None = None) -> Tensor:
        """Cuts a split into (windows, length) int64 tokens that do not overlap; drops the tail.

        Args:
            split: ``train``, ``val`` or ``test``.
            length: tokens of each.
            most: keep this many at most, spread evenly over the split; None: all.

        Raises:
            UserError: the split is shorter than one window.
        """
        stream = self.streams[split]
        count = len(stream) // length
        if count < 1:
            raise UserError(
                f"Data set '{self.name}' has {len(stream)} {split} tokens: too few for {length}."
            )
        rows = stream[: count * length].view(count, length)
        if most is not None and most < count:
            rows = rows[torch.arange(most) * count // most]
        return rows.long()

    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` (of the files or the tokens) and ``sizes`` in tokens."""
        splits = {name: (stream,) for name, stream in self.streams.items()}
        return _fingerprint(self.name, splits, self.source_digest)
