"""Text as streams of integer tokens: the standard library's own source, and benchmark corpora."""

from __future__ import annotations

import hashlib
import os
import string
import sysconfig
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from repro.data.base.files import HubFiles, read_table, sha256_of
from repro.data.base.modules import TextData
from repro.errors import UserError
from repro.knobs import Count, checked

# Fixed, so that the vocabulary does not depend on the Python that is installed: printable ASCII,
# tabulator and line feed; the last symbol stands for every other character.
ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \t\n"
UNKNOWN = len(ALPHABET)
# Tests are repetitive, packages are not the standard library, and build settings are one machine's.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib"}
END_OF_LINE = "<eos>"


def encode_bytes(text: bytes, vocabulary: Literal["characters", "bytes"]) -> Tensor:
    """Returns (N,) uint8 tokens: indices into `ALPHABET` or `UNKNOWN`, or the bytes themselves.

    Every byte is a token; a character outside ASCII is as many unknown symbols as it has bytes.
    """
    codes = np.frombuffer(text, dtype=np.uint8)
    if vocabulary == "bytes":
        return torch.from_numpy(codes.copy())
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[np.frombuffer(ALPHABET.encode(), dtype=np.uint8)] = np.arange(len(ALPHABET))
    return torch.from_numpy(table[codes])


def stdlib_files(stdlib: Path) -> dict[str, list[str]]:
    """Sorts the modules below a folder into splits by a hash of their path.

    A file is in the test split when the sha256 of its POSIX path relative to the folder is below
    10 % of the range, in the validation split below 20 %, else in the training split: a file never
    changes splits when others come or go. Within a split files are ordered by that hash, so that
    the first ones are a fair sample.

    Args:
        stdlib: folder of the standard library.

    Returns:
        Relative paths of ``train``, ``val`` and ``test``.
    """
    found = []
    for folder, subfolders, files in os.walk(stdlib):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT]
        found += [
            (Path(folder) / file).relative_to(stdlib).as_posix()
            for file in files
            if file.endswith(".py") and not file.startswith("_sysconfigdata")
        ]
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for key, path in sorted((hashlib.sha256(path.encode()).hexdigest(), path) for path in found):
        share = int(key[:8], 16) / 16**8
        splits["test" if share < 0.1 else "val" if share < 0.2 else "train"].append(path)
    return splits


def _concatenated(stdlib: Path, paths: Iterable[str], max_bytes: int) -> bytes:
    texts, size = [], 0
    for path in paths:
        if size >= max_bytes:
            break
        texts.append((stdlib / path).read_bytes().replace(b"\r\n", b"\n"))
        size += len(texts[-1])
    return b"".join(texts)[:max_bytes]


@checked
def stdlib_text(
    name: str,
    *,
    vocabulary: Literal["characters", "bytes"] = "characters",
    max_bytes: Count | None = None,
    stdlib: str | None = None,
    **facts: Any,
) -> TextData:
    """The source of the Python standard library, found where this Python keeps it.

    Different Pythons have different sources: the fingerprint tells them apart. Licence: PSF.

    Args:
        name: of the data set.
        vocabulary: ``characters`` (`ALPHABET` and one unknown symbol) or ``bytes`` (256).
        max_bytes: of the training split; validation and test get an eighth of it each.
        stdlib: folder of the standard library, by default this Python's.
        facts: see `TextData`.

    A `UserError` says so if this Python has no sources (in `TextData.setup`).
    """
    folder = Path(stdlib or sysconfig.get_paths()["stdlib"])

    def load() -> dict[str, Tensor]:
        splits = stdlib_files(folder)
        if not all(splits.values()):
            raise UserError(f"This Python has too few source files in {folder}.")
        most = max_bytes or sum((folder / path).stat().st_size for path in splits["train"])
        return {
            split: encode_bytes(
                _concatenated(folder, paths, most if split == "train" else most // 8), vocabulary
            )
            for split, paths in splits.items()
        }

    return TextData(name, load, **facts)


def encode_units(
    texts: Mapping[str, Sequence[str]], unit: Literal["characters", "words"]
) -> dict[str, Tensor]:
    """Turns the lines of each split into a stream of tokens, numbered by the training split.

    Characters are numbered in their order; words, of which every line ends with ``<eos>``, from
    the most to the least frequent (as an adaptive softmax wants them), ties alphabetically.

    Args:
        texts: lines of ``train`` and the other splits.
        unit: what a token is.

    Returns:
        (N,) int32 tokens of each split.

    Raises:
        UserError: a split has a token that training has not, and there is no ``<unk>``.
    """
    if unit == "characters":
        streams: dict[str, Sequence[str]] = {k: "".join(lines) for k, lines in texts.items()}
        known = sorted(set(streams["train"]))
    else:
        streams = {
            split: [word for line in lines for word in (*line.split(), END_OF_LINE)]
            for split, lines in texts.items()
        }
        counts = Counter(streams["train"])
        known = sorted(counts, key=lambda word: (-counts[word], word))
    number = {token: index for index, token in enumerate(known)}
    unknown = number.get("<unk>")
    encoded = {}
    for split, stream in streams.items():
        if unknown is None and (strange := set(stream) - number.keys()):
            raise UserError(f"The {split} text has {min(strange)!r}, which training has not.")
        encoded[split] = torch.tensor(
            [number.get(token, unknown) for token in stream], dtype=torch.int32
        )
    return encoded


@checked
def hub_text(
    name: str,
    *,
    info: Mapping[str, Any],
    unit: Literal["characters", "words"],
    text_column: str = "text",
    root: str | None = None,
    limit: Count | None = None,
    **facts: Any,
) -> TextData:
    """A text benchmark with hub splits ``train``, ``validation`` and ``test``.

    Args:
        name: of the data set.
        info: ``hub``, ``config`` and ``megabytes`` say where the files are.
        unit: ``characters``, or ``words`` between white space with ``<eos>`` after every line.
        text_column: of the parquet files.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        limit: train on the first this many tokens (the vocabulary stays); None for all.
        facts: see `TextData`.

    A `UserError` says so if files are missing or damaged, or the vocabulary is larger than stated
    (in `TextData.setup`).
    """
    files = HubFiles.of(name, info, root)
    splits = {"train": "train", "val": "validation", "test": "test"}

    def source_digest() -> str:
        return sha256_of([path for split in splits.values() for path in files.split(split)])

    def load() -> dict[str, Tensor]:
        texts = {
            split: read_table(files.split(hub_split), [text_column])[0].to_pylist()
            for split, hub_split in splits.items()
        }
        streams = encode_units(texts, unit)
        return {**streams, "train": streams["train"][:limit]}

    return TextData(name, load, source_digest=source_digest, info=info, **facts)
