"""Medical images of many modalities: RadImageNet from its folders, MedMNIST from its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import override

from repro.data.base.files import data_root, sha256_of
from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Split, Splits, TensorData, check_fact
from repro.data.images.hub import SPLIT_SEED, StreamedImages
from repro.data.images.own import SUFFIXES
from repro.errors import UserError
from repro.knobs import Count, checked

Size = Literal[28, 64, 128, 224]
FLAGS = (
    "bloodmnist", "breastmnist", "chestmnist", "dermamnist", "octmnist", "organamnist",
    "organcmnist", "organsmnist", "pathmnist", "pneumoniamnist", "retinamnist", "tissuemnist",
)  # fmt: skip


class FolderTable:
    """Images in ``<folder>/<class>/`` as a table of encoded bytes and numbers of classes.

    Args:
        folder: of one split.
        classes: names, in the order of their numbers.
        image_column: what the bytes are called.
        label_column: what the numbers are called.

    Raises:
        UserError: a class that is not among the names.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], image_column: str, label_column: str
    ) -> None:
        number = {name: index for index, name in enumerate(classes)}
        self.files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)
        unknown = {file.parent.name for file in self.files} - number.keys()
        if unknown:
            raise UserError(f"{folder} has classes that train/ has not: {sorted(unknown)[:3]}.")
        self.labels = np.array([number[file.parent.name] for file in self.files], dtype=np.int64)
        self.image_column, self.label_column = image_column, label_column

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | str) -> Any:
        """A row by its number; a column of labels by its name."""
        if isinstance(index, str):
            return self.labels
        encoded = {"bytes": self.files[index].read_bytes()}
        return {self.image_column: encoded, self.label_column: int(self.labels[index])}


class RadImageNet(StreamedImages):
    """RadImageNet: 1.35 million CT, MR and ultrasound images of 165 classes, cut by its authors.

    Read from ``<root>/../radimagenet/{train,val,test}/<class>/``, a class being a folder: modality,
    organ and pathology with two underscores between, or ``US__<class>``. Crops, decoding, order and
    resumption are those of `StreamedImages`.

    Args:
        name: of the data set.
        info: for `repro.data.base.catalog`.
        facts: see `StreamedImages`, which cuts its own splits; here they are published.
    """

    def __init__(self, name: str, *, info: Mapping[str, Any], **facts: Any) -> None:
        hub = {"hub": "radimagenet", "config": "", **info}
        super().__init__(name, info=hub, val_size=0, test_split="test", **facts)
        self.folder = data_root(facts.get("root")).parent / "radimagenet"

    @override
    def setup(self, stage: str | None = None) -> None:
        """Lists the files; does so once.

        Raises:
            UserError: there are none, or not as many classes as the config says.
        """
        if self._indices:
            return
        names = sorted(entry.name for entry in (self.folder / "train").glob("*") if entry.is_dir())
        tables = {s: FolderTable(self.folder / s, names, **self.columns) for s in SPLIT_NAMES}
        for split, table in tables.items():
            if not len(table):
                raise UserError(
                    f"Data set '{self.name}' is missing: no {self.folder / split}/<class>/*.png. "
                    "Ask for it at radimagenet.com and put it there, or point `data.root=` at the "
                    "folder beside it. An open substitute: dataset=medmnist."
                )
        check_fact(self.name, "classes", self.classes, len(names))
        self._tables = dict(tables)
        order = torch.randperm(len(tables["train"]), generator=generator_for(SPLIT_SEED))
        self._indices = {split: torch.arange(len(table)) for split, table in tables.items()}
        self._indices["train"] = order[: self.limit]

    @override
    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` over file names and sizes, and ``sizes`` of the splits."""
        self.setup()
        files = [file for split in SPLIT_NAMES for file in self._tables[split].files]
        sizes = {split: len(indices) for split, indices in self._indices.items()}
        return {"name": self.name, "sha256": sha256_of(files, contents=False), "sizes": sizes}


@checked
def medmnist(
    name: str = "medmnist",
    *,
    sets: Sequence[str],
    size: Size = 224,
    limit: Count | None = None,
    root: str | None = None,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> TensorData:
    """MedMNIST's 2-D sets in their published splits, one or several with one label space.

    Read from ``<root>/../medmnist/<set>_<size>.npz`` (``<set>.npz`` at 28 pixels), as the package
    ``medmnist`` writes them. Grey images become colours. ChestMNIST has 14 findings an image; here
    it is whether there is any.

    Args:
        name: of the data set.
        sets: flags such as ``pathmnist``; their classes are numbered one set after another.
        size: pixels a side.
        limit: train on this many images of each set, a fixed random choice; None: all.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    A `UserError` says so if a file is missing or damaged, when its data are read.

    Raises:
        UserError: there is no such set.
    """
    unknown = set(sets) - set(FLAGS)
    if unknown or not sets:
        raise UserError(f"dataset.sets: {sorted(unknown)}; MedMNIST's 2-D sets: {', '.join(FLAGS)}")
    suffix = "" if size == 28 else f"_{size}"
    files = [data_root(root).parent / "medmnist" / f"{flag}{suffix}.npz" for flag in sets]

    def load() -> Splits:
        parts: dict[str, list[Split]] = {split: [] for split in SPLIT_NAMES}
        classes = 0
        for file in files:
            read = {split: _read(file, split) for split in SPLIT_NAMES}
            order = torch.randperm(len(read["train"][1]), generator=generator_for(SPLIT_SEED))
            read["train"] = tuple(each[order[:limit]] for each in read["train"])
            for split, (x, y) in read.items():
                parts[split].append((x, y + classes))
            classes = 1 + max(int(parts[split][-1][1].max()) for split in SPLIT_NAMES)
        return {
            split: tuple(torch.cat(each) for each in zip(*found, strict=True))
            for split, found in parts.items()
        }

    return TensorData(
        name, load, source_digest=lambda: sha256_of(files, contents=False), info=info, **facts
    )


def _read(file: Path, split: str) -> Split:
    """Images (N, 3, S, S) uint8 and labels (N,) of a split.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            images, labels = stored[f"{split}_images"], stored[f"{split}_labels"]
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"{file} is missing or damaged ({type(error).__name__}). Fetch it with the package"
            " medmnist: python -m medmnist download --size=224 --root=FOLDER"
        ) from error
    x = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    x = x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
    y = labels.any(1) if labels.shape[1] > 1 else labels[:, 0]
    return x, torch.from_numpy(y.astype(np.int64))
