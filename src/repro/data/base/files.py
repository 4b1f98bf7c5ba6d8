"""Where data sets lie on disk, reading their parquet files, and the cache of what was decoded.

Local folders are laid out as on the Hugging Face hub, ``<root>/<org>/<name>/<config>/<split>-*``,
so a snapshot of the hub, a copy on a cluster and a hand-made folder are read by the same code, and
nothing here ever needs the network. Imports neither torch nor pyarrow at module level.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repro.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow

INSTALL = "pip install 'gradient-repro[data]'"
INSTALL_HF = "pip install 'gradient-repro[hf]'"


def cache_home() -> Path:
    """Returns ``$REPRO_CACHE``, or ``~/.cache/repro``.

    Raises:
        UserError: there is no home folder.
    """
    try:
        return Path(os.environ.get("REPRO_CACHE") or "~/.cache/repro").expanduser()
    except RuntimeError:
        raise UserError(
            "There is no home folder to keep data sets in: say where, REPRO_CACHE=DIR."
        ) from None


def size(megabytes: float) -> str:
    """How much there is to download, for people.

    Examples:
        >>> size(18), size(155_840)
        ('18 MB', '156 GB')
    """
    return f"{megabytes / 1000:.3g} GB" if megabytes >= 1000 else f"{megabytes:.3g} MB"


def data_root(root: str | Path | None = None) -> Path:
    """Returns `root`, or ``$REPRO_DATA_ROOT``, or the folder that `repro data fetch` fills."""
    chosen = root or os.environ.get("REPRO_DATA_ROOT") or cache_home() / "hf"
    return Path(chosen).expanduser()


@dataclass(frozen=True)
class HubFiles:
    """The parquet files of one configuration of one data set of the hub, in a local folder.

    Args:
        name: what users call the data set.
        repository: ``org/name`` on the hub.
        config: the sub-folder of the configuration.
        megabytes: size of the download.
        root: folder of all data sets (`data_root`).
    """

    name: str
    repository: str
    config: str
    megabytes: float
    root: Path

    @classmethod
    def of(cls, name: str, info: Mapping[str, Any], root: str | Path | None) -> HubFiles:
        """Builds it from the ``info`` of a dataset config: ``hub``, ``config``, ``megabytes``."""
        return cls(name, info["hub"], info["config"], info["megabytes"], data_root(root))

    @property
    def folder(self) -> Path:
        """Where the files are looked for."""
        return self.root / self.repository / self.config

    def split(self, split: str, first: int | None = None) -> list[Path]:
        """Returns the files of a split, named as on the hub (``train``, ``validation``, ``test``).

        Args:
            split: its name.
            first: so many files are enough, and no more are returned; None: all of them.

        Raises:
            UserError: there is none, or one of those asked for is missing.
        """
        # The hub's own parquet conversions lie one folder deeper, as <split>/0000.parquet.
        files = sorted(self.folder.glob(f"{split}-*.parquet"))
        files = files or sorted((self.folder / split).glob("*.parquet"))
        if not files:
            raise UserError(
                f"Data set '{self.name}' is missing: no {self.folder / split}-*.parquet.\n"
                f"Fetch it ({size(self.megabytes)}) with `repro data fetch {self.name}`, or point"
                " `data.root=` (or REPRO_DATA_ROOT) at a local copy."
            )
        stated = re.search(r"-of-0*(\d+)\.parquet$", files[0].name)
        enough = first is not None and len(files) >= first
        if stated and len(files) != int(stated[1]) and not enough:
            raise UserError(
                f"Data set '{self.name}' is incomplete: {len(files)} of {stated[1]} files"
                f" {self.folder / split}-*.parquet.\nFetch the rest with"
                f" `repro data fetch {self.name}`."
            )
        return files[:first]


def read_table(files: Sequence[Path], columns: Sequence[str]) -> pyarrow.Table:
    """Reads columns of parquet files into one table.

    Raises:
        UserError: pyarrow is not installed, a file is damaged, or a column is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"Reading parquet files needs pyarrow: {INSTALL}") from error
    tables = []
    for file in files:
        try:
            table = parquet.ParquetFile(file)
            absent = [column for column in columns if column not in table.schema_arrow.names]
            if not absent:
                tables.append(table.read(columns=list(columns)))
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{file} is damaged or no parquet file ({first_line(error)}).\n"
                "Delete it and fetch the data set again."
            ) from error
        if absent:
            raise UserError(
                f"{file} has no column '{absent[0]}'; it has {table.schema_arrow.names}."
            )
    return pyarrow.concat_tables(tables)


def sha256_of(files: Sequence[Path], contents: bool = True) -> str:
    """Returns a sha256 over the names of files and their contents (or only their sizes).

    Folders do not count: a copy elsewhere has the same fingerprint.
    """
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name}:{file.stat().st_size}\n".encode())
        if contents:
            with file.open("rb") as opened:
                sha.update(hashlib.file_digest(opened, "sha256").digest())
    return sha.hexdigest()


def cached_arrays(
    key: str, make: Callable[[], dict[str, np.ndarray]], folder: Path | None = None
) -> dict[str, np.ndarray]:
    """Returns what `make` returns, from the disk cache when it was made before.

    The file is an uncompressed ``.npz``, read without pickle; zip checksums reveal damage, and a
    damaged file is made again. Where nothing can be written, nothing is cached.

    Args:
        key: file name without suffix; must change whenever the arrays would.
        make: computes the arrays.
        folder: of the cache; ``<cache_home>/decoded`` by default.
    """
    path = (folder or cache_home() / "decoded") / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent or damaged
    arrays = make()
    partial = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError:
        pass  # a full or read-only disk costs only time
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return arrays
