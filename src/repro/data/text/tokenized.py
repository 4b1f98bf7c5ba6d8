"""Text in the tokens of a published language model, as papers that compress such models use it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from repro.data.base.files import INSTALL_HF, HubFiles, data_root, read_table, sha256_of
from repro.data.base.modules import TextData
from repro.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPLITS = {"train": "train", "val": "validation", "test": "test"}
TRIES = 10_000  # documents looked at for one that is long enough


def load_tokenizer(folder: str | Path, root: str | Path | None = None) -> Tokenizer:
    """Reads the ``tokenizer.json`` of a model's folder.

    Args:
        folder: of the model, below `root`, or a path of its own.
        root: folder of all downloads, see `repro.data.base.files.data_root`.

    Raises:
        UserError: the file is missing or damaged, or tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"Reading a tokenizer needs tokenizers: {INSTALL_HF}") from error
    file = data_root(root) / folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"The tokenizer of '{folder}' is missing: no {file}.\nIt comes with the model's"
            f" checkpoint: `hf download {folder} --local-dir {file.parent}`."
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{file} is no tokenizer: {str(error).splitlines()[0]}") from error


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """The tokens of a text as one stream (N,), with what the model wants at the beginning."""
    return torch.tensor(tokenizer.encode(text).ids, dtype=torch.int32)


class DocumentText(TextData):
    """Text to evaluate on, and documents of another corpus to calibrate with.

    Args:
        name: of the data set.
        documents: JSON lines with a ``text`` each, compressed with gzip.
        tokenizer: of the model.
        streams: see `TextData`.
        facts: see `TextData`.
    """

    def __init__(
        self, name: str, streams: Any, documents: Path, tokenizer: Tokenizer, **facts: Any
    ) -> None:
        super().__init__(name, streams, **facts)
        self.documents = documents
        self.tokenizer = tokenizer

    def sample(self, count: int, length: int, seed: int) -> Tensor:
        """Returns (count, length) tokens as Wanda's and GBLM's code draws them.

        Python's generator picks a document until one has more than `length` tokens, then a place in
        it; the same seed gives the sequences of that code.

        Args:
            count: of sequences.
            length: tokens of each.
            seed: of the draws.

        Raises:
            UserError: no document is long enough.
        """
        texts = read_documents(self.documents)
        draw = random.Random(seed)
        drawn = []
        for _ in range(count):
            for _ in range(TRIES):
                tokens = encode(self.tokenizer, texts[draw.randint(0, len(texts) - 1)])
                if len(tokens) > length:
                    break
            else:
                raise UserError(f"{self.documents} has no document of more than {length} tokens.")
            start = draw.randint(0, len(tokens) - length - 1)
            drawn.append(tokens[start : start + length])
        return torch.stack(drawn).long()


def read_documents(file: Path) -> list[str]:
    """The texts of a file of JSON lines, compressed with gzip.

    Raises:
        UserError: the file is damaged, or empty.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged: {error}.\nDelete it and fetch it again.") from error
    if not texts:
        raise UserError(f"{file} holds no document.")
    return texts


def tokenized_text(
    name: str,
    *,
    info: Mapping[str, Any],
    tokenizer: str,
    documents: str | None = None,
    splits: Mapping[str, str] = SPLITS,
    text_column: str = "text",
    root: str | None = None,
    **facts: Any,
) -> TextData:
    """A text benchmark in the tokens of a model; each split joined by empty lines, tokenised once.

    Args:
        name: of the data set.
        info: ``hub``, ``config`` and ``megabytes`` say where the files are.
        tokenizer: folder of the model, see `load_tokenizer`.
        documents: file of documents to calibrate with, below `root`, instead of the training split
            (of which then the validation split takes the place).
        splits: our names for the splits on the hub.
        text_column: of the parquet files.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        facts: see `TextData`.

    Raises:
        UserError: the tokenizer or the documents are missing; or (in `TextData.setup`) other files
            are missing or damaged, or the vocabulary is larger than stated.
    """
    files = HubFiles.of(name, info, root)
    words = load_tokenizer(tokenizer, root)
    wanted = dict(splits)
    if documents is not None:
        wanted["train"] = wanted["val"]

    def source_digest() -> str:
        paths = [path for split in wanted.values() for path in files.split(split)]
        # A corpus of hundreds of MB is told by its name and size.
        extra = "" if documents is None else sha256_of([where], contents=False)
        return sha256_of(paths) + extra

    def load() -> dict[str, Tensor]:
        encoded: dict[str, Tensor] = {}
        for split in dict.fromkeys(wanted.values()):
            lines = read_table(files.split(split), [text_column])[0].to_pylist()
            encoded[split] = encode(words, "\n\n".join(lines))
        return {ours: encoded[theirs] for ours, theirs in wanted.items()}

    if documents is None:
        return TextData(name, load, source_digest=source_digest, info=info, **facts)
    where = data_root(root) / documents
    if not where.is_file():
        repository, _, file = documents.partition("/en/")
        raise UserError(
            f"Data set '{name}': no {where}.\nFetch it (about 320 MB): `hf download {repository}"
            f" en/{file} --repo-type dataset --local-dir {data_root(root) / repository}`."
        )
    return DocumentText(name, load, where, words, source_digest=source_digest, info=info, **facts)
