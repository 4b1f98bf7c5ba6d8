"""What data sets there are, whether they are here, and how they get here.

A data set is a file of ``conf/dataset``: its first line says what it is, its ``info`` where it
comes from. Importing this module costs nothing: no torch, no Lightning, no pyarrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.data.base.files import HubFiles, data_root, read_table, size
from repro.errors import UserError, did_you_mean, first_line
from repro.planning import extras
from repro.records.files import read_yaml
from repro.records.papers import config_files

# What is assumed of a data set whose config does not say: a user's own.
OWN = {"source": "your own", "licence": "your own", "megabytes": 0.0, "bundled": True}
# The two ways in which the hub names the files of a split.
ENDS = ("-*.parquet", "/*.parquet")


@dataclass(frozen=True)
class DatasetInfo:
    """One line of the catalogue.

    Args:
        name: of the config, i.e. what ``dataset=`` takes.
        description: what it is, how large, under which licence.
        source: where it comes from.
        licence: of the data.
        megabytes: size of the download; about 0 where there is none.
        bundled: comes with Python, with a dependency, or is simulated.
        place: folder in which it lies; None when bundled or missing.
        problem: why it cannot be used, in one to three lines; None when it can.
    """

    name: str
    description: str
    source: str
    licence: str
    megabytes: float
    bundled: bool
    place: Path | None
    problem: str | None

    @property
    def present(self) -> bool:
        """Whether a run can use it now."""
        return self.problem is None


def place_of(
    config: Mapping[str, Any], root: str | Path | None, first: int | None = None
) -> Path | None:
    """The folder in which a data set lies; None where it needs none.

    Args:
        config: of the data set, with `info`.
        root: folder of benchmark sets.
        first: so many files of each split on the hub are enough; None: all of them.

    Raises:
        UserError: it is missing or incomplete.
    """
    info = config["info"]
    name = config.get("name") or info.get("folder", "")  # a suite has no name of its own
    if "hub" in info:
        where = HubFiles.of(name, info, root)
        for split in info["splits"]:
            where.split(split, first)
        return where.folder
    if info["bundled"]:
        return None
    folder = data_root(root).parent / info.get("folder", name)
    pattern = info.get("files", "*.npz")
    if not any(folder.glob(pattern)):
        raise UserError(
            f"Data set '{name}' is missing: no {folder}/{pattern}. Source: {info['source']}."
        )
    return folder


def problem_of(
    config: Mapping[str, Any], root: str | Path | None, first: int | None = None
) -> str | None:
    """Why a data set cannot be used, or None; see `place_of`."""
    try:
        place_of(config, root, first)
    except UserError as error:
        return str(error)
    return None


def _read(file: Path) -> dict[str, Any]:
    """A data set's config, with an `info` in any case.

    Raises:
        UserError: it is no mapping, or its `info` lacks something.
    """
    content = read_yaml(file) or {}
    info = content.get("info", OWN) if isinstance(content, dict) else None
    if not isinstance(info, dict) or not OWN.keys() <= info.keys():
        raise UserError(f"{file}: info takes {', '.join(OWN)}, or is left out.")
    return {**content, "info": info, "name": file.stem}


def _look_up(file: Path, root: str | Path | None) -> DatasetInfo:
    config = _read(file)
    info = config["info"]
    first_line = file.read_text(encoding="utf-8").partition("\n")[0]
    problem = problem_of(config, root)
    return DatasetInfo(
        name=file.stem,
        description=re.sub(r"^#\s*", "", first_line),
        source=info["source"],
        licence=info["licence"],
        megabytes=info["megabytes"],
        bundled=info["bundled"],
        place=None if problem else place_of(config, root),
        problem=problem,
    )


def _config_file(name: str) -> Path:
    known = config_files("dataset")
    if name not in known:
        raise UserError(f"There is no data set '{name}'.{did_you_mean(name, known)}")
    return known[name]


def describe(root: str | Path | None = None) -> list[DatasetInfo]:
    """Returns every data set, sorted by name.

    Args:
        root: folder of benchmark sets, see `repro.data.base.files.data_root`.
    """
    return [_look_up(file, root) for _, file in sorted(config_files("dataset").items())]


def check(name: str, root: str | Path | None = None) -> dict[str, int]:
    """Opens every file of a data set and counts its rows.

    Args:
        name: of the config.
        root: folder of benchmark sets.

    Returns:
        Rows of each split on the hub; empty for data sets without such files.

    Raises:
        UserError: there is no such data set, or it is missing, incomplete or damaged.
    """
    file = _config_file(name)
    entry = _look_up(file, root)
    if entry.problem is not None:
        raise UserError(entry.problem)
    config = _read(file)
    if "hub" not in config["info"]:
        return {}
    where = HubFiles.of(name, config["info"], root)
    columns = [value for key, value in config.items() if key.endswith("_column")]
    # File by file: some sets are larger than memory.
    return {
        split: sum(len(read_table([path], columns)) for path in where.split(split))
        for split in config["info"]["splits"]
    }


def fetch(name: str, root: str | Path | None = None, most: float | None = None) -> Path:
    """Downloads a benchmark set from the Hugging Face hub, unless it is here already.

    Args:
        name: of the config.
        root: folder of benchmark sets.
        most: megabytes; larger sets are refused.

    Returns:
        The folder of the files.

    Raises:
        UserError: there is no such data set, it is not on the hub, or it is too large; likewise if
            the hub cannot be reached, or refuses (ImageNet needs an account that has accepted its
            terms).
    """
    file = _config_file(name)
    entry = _look_up(file, root)
    if entry.bundled:
        raise UserError(f"Data set '{name}' needs no download ({entry.source}).")
    if entry.place is not None:
        return entry.place
    info = _read(file)["info"]
    if "hub" not in info:
        raise UserError(f"Data set '{name}' cannot be fetched. Source: {entry.source}.")
    extras.require(["huggingface_hub"])
    where = HubFiles.of(name, info, root)
    if most is not None and entry.megabytes > most:
        raise UserError(
            f"Data set '{name}' is a download of {size(entry.megabytes)} to {where.root}. "
            f"To start it: repro data fetch {name} --yes"
        )
    _download(where, info)
    for split in info["splits"]:
        where.split(split)
    return where.folder


def _download(where: HubFiles, info: Mapping[str, Any]) -> None:
    """Fetches the parquet files of a data set's splits.

    Raises:
        UserError: the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"{where.config}/{split}{end}" for split in info["splits"] for end in ENDS]
    try:
        snapshot_download(
            where.repository,
            repo_type="dataset",
            revision=info.get("revision"),
            allow_patterns=patterns,
            local_dir=where.root / where.repository,
        )
    except Exception as error:  # the client raises its own, its HTTP library's and the system's
        raise UserError(
            f"Data set '{where.name}' could not be fetched from {info['source']}: "
            f"{first_line(error)}\nWithout a network, copy it from elsewhere and point `data.root=`"
            f" (or REPRO_DATA_ROOT) at the folder that holds {where.repository}."
        ) from error
