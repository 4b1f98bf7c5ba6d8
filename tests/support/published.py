"""Tiny models, tokenizers and corpora in the layout of the Hugging Face hub, written to a folder.

Whoever writes them skips the test where the libraries that they need are missing.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.models import Llama

VOCAB = 300


def write_tokenizer(folder: Path, lines: Sequence[str], special: str) -> int:
    """Writes a byte-level tokenizer that has seen the lines; returns the size of its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[special], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator(lines, trainer)
    words.save(str(folder / "tokenizer.json"))
    size: int = words.get_vocab_size()
    return size


def write_table(file: Path, texts: Sequence[str]) -> None:
    """Writes a Parquet table with a column ``text``."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"text": texts}), file)


def write_images(
    folder: Path,
    shape: Sequence[int],
    splits: dict[str, int],
    column: str,
    labels: str = "label",
) -> None:
    """Writes random images (height, width[, channels]) of ten classes, so many in each split."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for split, count in splits.items():
        cells = []
        for _ in range(count):
            encoded = io.BytesIO()
            pictures.fromarray(draw.integers(0, 256, shape, np.uint8)).save(encoded, "PNG")
            cells.append({"bytes": encoded.getvalue(), "path": None})
        table = pyarrow.table({column: cells, labels: [i % 10 for i in range(count)]})
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def write_gpt2(root: Path) -> None:
    """Writes a GPT-2 of three blocks with its tokenizer, and a shard of OpenWebText."""
    transformers = pytest.importorskip("transformers")
    folder = root / "openai-community" / "gpt2"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "n_positions": 16, "n_embd": 24, "n_layer": 3}
    config = transformers.GPT2Config(**sizes, n_head=2, initializer_range=0.3)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    write_tokenizer(folder, ["some words"], "<|endoftext|>")
    shard = root / "Skylion007" / "openwebtext" / "plain_text" / "train-00000-of-00080.parquet"
    write_table(shard, [f"{number} {'some words ' * 20}" for number in range(60)])


def write_llama(root: Path) -> int:
    """Writes a LLaMA of two blocks with its tokenizer, documents of C4, and WikiText-2.

    Returns:
        The size of its vocabulary.
    """
    safetensors = pytest.importorskip("safetensors.torch")
    lines = ["the cat sat on the mat .", "", "a dog ran after the cat , and the cat ran ."] * 60
    folder = root / "huggyllama" / "llama-7b"
    vocab = write_tokenizer(folder, lines, "<s>")
    torch.manual_seed(0)
    model = Llama(vocab, 16, 2, 2, mlp_width=32)
    safetensors.save_file(model.state_dict(), folder / "model.safetensors")
    config: dict[str, Any] = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    documents = root / "allenai" / "c4" / "en" / "c4-train.00000-of-01024.json.gz"
    documents.parent.mkdir(parents=True)
    with gzip.open(documents, "wt") as file:
        file.writelines(json.dumps({"text": " ".join(lines[:n])}) + "\n" for n in (2, 30, 50))
    wikitext = root / "Salesforce" / "wikitext" / "wikitext-2-raw-v1"
    for split in ("validation", "test"):
        write_table(wikitext / f"{split}-00000-of-00001.parquet", lines)
    return vocab
