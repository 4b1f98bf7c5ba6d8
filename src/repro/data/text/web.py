"""Web text in the tokens of a published model: as many shards of a large corpus as one wants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from repro.data.base.files import HubFiles, cached_arrays, data_root, read_table, sha256_of
from repro.data.base.modules import TextData
from repro.data.text.tokenized import load_tokenizer, read_documents
from repro.errors import UserError
from repro.knobs import Count, Inside, checked

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AT_ONCE = 1000  # documents that the tokenizer is given


@checked
def web_text(
    name: str,
    *,
    info: Mapping[str, Any],
    tokenizer: str,
    end: str,
    shards: Count,
    held_out: Inside,
    text_column: str = "text",
    root: str | None = None,
    **facts: Any,
) -> TextData:
    """Documents one after the other, each followed by the token that ends a text.

    The corpus comes as one split. The last documents of what is read are held out, half of them
    for validation and half for test. Tokens are kept on disk
    (`repro.data.base.files.cached_arrays`).

    Args:
        name: of the data set.
        info: ``hub``, ``config`` and ``megabytes`` say where parquet files are; or ``folder``
            (beside `root`) and ``files`` (a pattern) where JSON lines compressed with gzip are.
        tokenizer: folder of the model, see `repro.data.text.tokenized.load_tokenizer`.
        end: the token that ends a text.
        shards: files to read, from the first.
        held_out: share of the documents, in (0, 1).
        text_column: of parquet files.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        facts: see `TextData`.

    Raises:
        UserError: a knob is out of range, the tokenizer is missing or has no such token; or (in
            `TextData.setup`) files are missing or damaged.
    """
    words = load_tokenizer(tokenizer, root)
    end_id = words.token_to_id(end)
    if end_id is None:
        raise UserError(f"Data set '{name}': the tokenizer of {tokenizer} has no token '{end}'.")

    def source_digest() -> str:
        return sha256_of(_shards(name, info, root, shards), contents=False)

    def load() -> dict[str, Tensor]:
        paths = _shards(name, info, root, shards)
        what = f"{sha256_of(paths, contents=False)} {words.to_str()} {end} {held_out} {text_column}"
        key = f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

        def make() -> dict[str, np.ndarray]:
            texts = _texts(paths, text_column)
            half = max(1, round(held_out * len(texts) / 2))
            if len(texts) < 3 * half:
                raise UserError(f"Data set '{name}': too few documents to hold {held_out} out.")
            cuts = {"train": (0, -2 * half), "val": (-2 * half, -half), "test": (-half, None)}
            return {
                split: np.fromiter(_stream(words, texts[slice(*cut)], end_id), dtype=np.int32)
                for split, cut in cuts.items()
            }

        return {
            split: torch.from_numpy(tokens) for split, tokens in cached_arrays(key, make).items()
        }

    return TextData(name, load, source_digest=source_digest, info=info, **facts)


def _shards(name: str, info: Mapping[str, Any], root: str | None, count: int) -> list[Path]:
    if "hub" in info:
        folder = HubFiles.of(name, info, root).folder
        found = sorted(folder.glob("train-*.parquet")) or sorted(folder.glob("train/*.parquet"))
        how = f"Fetch it ({info['megabytes']:g} MB) with `repro data fetch {name}`"
    else:
        folder = data_root(root).parent / info["folder"]
        found = sorted(folder.glob(info["files"]))
        how = f"Put {info['files']} there, from {info['source']}"
    if len(found) < count:
        raise UserError(
            f"Data set '{name}': {len(found)} of {count} shards are in {folder}. {how}, or set"
            " dataset.shards= or data.root=."
        )
    return found[:count]


def _texts(paths: Sequence[Path], column: str) -> list[str]:
    if paths[0].suffix == ".gz":
        return [text for path in paths for text in read_documents(path)]
    texts: list[str] = read_table(paths, [column])[0].to_pylist()
    return texts


def _stream(tokenizer: Tokenizer, texts: Sequence[str], end: int) -> Iterator[int]:
    for start in range(0, len(texts), AT_ONCE):
        for encoding in tokenizer.encode_batch(list(texts[start : start + AT_ONCE])):
            yield from encoding.ids
            yield end
