"""Web text in the tokens of a published model: as many shards of a large corpus as one wants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from repro.data.base.files import HubFiles, cached_arrays, read_table, sha256_of
from repro.data.base.modules import TextData
from repro.data.text.tokenized import load_tokenizer
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
        info: ``hub``, ``config`` and ``megabytes`` say where the files are.
        tokenizer: folder of the model, see `repro.data.text.tokenized.load_tokenizer`.
        end: the token that ends a text.
        shards: files to read, from the first.
        held_out: share of the documents, in (0, 1).
        text_column: of the parquet files.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        facts: see `TextData`.

    Raises:
        UserError: a knob is out of range, the tokenizer is missing or has no such token; or (in
            `TextData.setup`) files are missing or damaged.
    """
    files = HubFiles.of(name, info, root)
    words = load_tokenizer(tokenizer, root)
    end_id = words.token_to_id(end)
    if end_id is None:
        raise UserError(f"Data set '{name}': the tokenizer of {tokenizer} has no token '{end}'.")

    def source_digest() -> str:
        return sha256_of(_shards(files, shards), contents=False)

    def load() -> dict[str, Tensor]:
        paths = _shards(files, shards)
        what = f"{sha256_of(paths, contents=False)} {words.to_str()} {end} {held_out} {text_column}"
        key = f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

        def make() -> dict[str, np.ndarray]:
            texts = read_table(paths, [text_column])[0].to_pylist()
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


def _shards(files: HubFiles, count: int) -> list[Path]:
    found = sorted(files.folder.glob("train-*.parquet")) or sorted(
        (files.folder / "train").glob("*.parquet")
    )
    if len(found) < count:
        raise UserError(
            f"Data set '{files.name}': {len(found)} of {count} shards are in {files.folder}. Fetch"
            f" it ({files.megabytes:g} MB) with `repro data fetch {files.name}`, or set"
            " dataset.shards= or data.root=."
        )
    return found[:count]


def _stream(tokenizer: Tokenizer, texts: Sequence[str], end: int) -> Iterator[int]:
    for start in range(0, len(texts), AT_ONCE):
        for encoding in tokenizer.encode_batch(list(texts[start : start + AT_ONCE])):
            yield from encoding.ids
            yield end
