"""Web text in a model's tokens, with a tokenizer and shards made here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from repro.errors import UserError

tokenizers = pytest.importorskip("tokenizers")
FACTS = {"vocab_size": 300, "sequence_length": 4, "batch_size": 2, "eval_batch_size": 1}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two of a corpus's shards with ten documents each, and a byte-level tokenizer."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "Skylion007" / "openwebtext" / "plain_text"
    folder.mkdir(parents=True)
    for shard in range(2):
        texts = [f"document {10 * shard + number} says {'so ' * number}" for number in range(10)]
        parquet.write_table(
            pa.table({"text": texts}), folder / f"train-0000{shard}-of-00080.parquet"
        )
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    words.train_from_iterator(["document says so so so"] * 9, trainer)
    model = tmp_path / "openai-community" / "gpt2"
    model.mkdir(parents=True)
    words.save(str(model / "tokenizer.json"))
    return tmp_path


def test_documents_end_where_they_should(dataset, root):
    data = dataset("openwebtext", root, shards=2, held_out=0.2, **FACTS)
    words = tokenizers.Tokenizer.from_file(str(root / "openai-community/gpt2/tokenizer.json"))
    streams = data.streams
    assert [int((streams[split] == 0).sum()) for split in ("train", "val", "test")] == [16, 2, 2]
    assert all(int(stream[-1]) == 0 for stream in streams.values())
    first = streams["train"][: (streams["train"] == 0).nonzero()[0]]
    assert words.decode(first.tolist()) == "document 0 says "
    last = words.decode(streams["test"].tolist(), skip_special_tokens=True)
    assert "document 19" in last
    assert "document 17" not in last
    again = dataset("openwebtext", root, shards=2, held_out=0.2, **FACTS)  # from the cache
    assert all((again.streams[split] == streams[split]).all() for split in streams)
    assert again.fingerprint() == data.fingerprint()


def test_compressed_lines_are_read_too(dataset, root):
    folder = root / "hf" / "allenai" / "c4" / "en"
    folder.mkdir(parents=True)
    with gzip.open(folder / "c4-train.00000-of-01024.json.gz", "wt") as lines:
        lines.writelines(json.dumps({"text": f"document {n}"}) + "\n" for n in range(10))
    (root / "openai-community").rename(root / "hf" / "openai-community")
    knobs = {"tokenizer": "openai-community/gpt2", "end": "<|endoftext|>", "shards": 1}
    data = dataset("c4", root / "hf", held_out=0.2, **FACTS, **knobs)
    assert [int((data.streams[split] == 0).sum()) for split in ("train", "val", "test")] == [
        8,
        1,
        1,
    ]
    with pytest.raises(UserError, match=r"1 of 2 shards .* Put c4-train"):
        dataset("c4", root / "hf", held_out=0.2, **FACTS, **knobs | {"shards": 2}).setup()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"shards": 3}, "2 of 3 shards"),
        ({"shards": 0}, "shards is a whole number of at least 1"),
        ({"held_out": 1.0}, "held_out"),
        ({"end": "<end>"}, "no token '<end>'"),
        ({"vocab_size": 100}, "vocab_size"),
        ({"tokenizer": "other/model"}, "tokenizer of 'other/model' is missing"),
    ],
)
def test_messages(dataset, root, knobs, message):
    with pytest.raises(UserError, match=message):
        dataset("openwebtext", root, **{"held_out": 0.2, **FACTS, **knobs}).setup()
