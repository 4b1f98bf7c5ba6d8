"""Text corpora: the standard library's source and benchmark sets."""

from __future__ import annotations

import pytest
import torch

from repro.data.text.streams import ALPHABET, UNKNOWN, encode_bytes, encode_units, stdlib_files
from repro.errors import UserError


@pytest.fixture
def shakespeare_root(tmp_path, write_texts):
    folder = tmp_path / "karpathy" / "tiny_shakespeare" / "default"
    write_texts(folder, "train", ["to be or not to be\n" * 40])
    write_texts(folder, "validation", ["not to be\n" * 40])
    write_texts(folder, "test", ["or to be\n" * 40])
    return tmp_path


def test_characters_and_bytes():
    text = "if x:\n\treturn 'ü'"
    tokens = encode_bytes(text.encode(), "characters").tolist()
    decoded = "".join((ALPHABET + "?")[token] for token in tokens)
    assert decoded == text.replace("ü", "??")
    assert max(tokens) == UNKNOWN == 97
    assert bytes(encode_bytes(text.encode(), "bytes").tolist()) == text.encode()


def test_words_are_numbered_by_frequency():
    texts = {"train": ["b a b\n", "\n", "c <unk>"], "val": ["a new b"]}
    streams = encode_units(texts, "words")
    # <eos> three times, b twice, then <unk>, a, c alphabetically.
    assert streams["train"].tolist() == [1, 3, 1, 0, 0, 4, 2, 0]
    assert streams["val"].tolist() == [3, 2, 1, 0]


def test_a_token_that_training_has_not():
    with pytest.raises(UserError, match="The val text has 'z', which training has not"):
        encode_units({"train": ["abc"], "val": ["abz"]}, "characters")


class TestStdlib:
    def test_is_deterministic_and_within_its_limit(self, dataset):
        data = dataset("stdlib_text", max_bytes=20000)
        assert data.fingerprint() == dataset("stdlib_text", max_bytes=20000, seed=5).fingerprint()
        assert data.fingerprint()["sizes"] == {"train": 20000, "val": 2500, "test": 2500}
        text = "".join((ALPHABET + "?")[token] for token in data.streams["train"])
        assert "import " in text
        x, y = next(iter(data.train_dataloader()))
        assert x.shape == y.shape == (32, 64)
        assert torch.equal(x[:, 1:], y[:, :-1])

    def test_files_keep_their_split_when_others_come(self, tmp_path):
        for number in range(60):
            (tmp_path / f"m{number}.py").write_text("")
        before = stdlib_files(tmp_path)
        for extra in ("new.py", "test/test_x.py", "site-packages/p.py", "notes.txt"):
            (tmp_path / extra).parent.mkdir(exist_ok=True)
            (tmp_path / extra).write_text("")
        after = stdlib_files(tmp_path)
        assert sum(map(len, after.values())) == 61
        assert all(set(before[split]) <= set(after[split]) for split in before)

    def test_windows_and_line_ends(self, dataset, tmp_path):
        for number in range(60):
            (tmp_path / f"m{number}.py").write_bytes(b"x = 1\r\n" * 50)
        data = dataset("stdlib_text", stdlib=str(tmp_path), max_bytes=None, windows=True)
        assert UNKNOWN not in data.streams["train"]
        x, y = next(iter(data.train_dataloader()))
        assert torch.equal(x[:, 1:], y[:, :-1])

    def test_messages(self, dataset, tmp_path):
        with pytest.raises(UserError, match="too few source files"):
            dataset("stdlib_text", stdlib=str(tmp_path)).setup()
        with pytest.raises(UserError, match="vocabulary is characters or bytes"):
            dataset("stdlib_text", vocabulary="words")
        with pytest.raises(UserError, match="vocab_size=50, the data have vocab_size="):
            dataset("stdlib_text", vocab_size=50, max_bytes=9999).setup()
        with pytest.raises(UserError, match="sequence_length is a whole number of at least 1"):
            dataset("stdlib_text", sequence_length=0)
        with pytest.raises(UserError, match="train split: 999 tokens are too few for 32 rows"):
            dataset("stdlib_text", max_bytes=999).train_dataloader()


class TestHub:
    def test_characters(self, dataset, shakespeare_root):
        data = dataset("tiny_shakespeare", shakespeare_root, batch_size=2, eval_batch_size=2)
        letters = sorted(set("to be or not to be\n"))
        text = "".join(letters[token] for token in data.streams["train"])
        assert text == "to be or not to be\n" * 40
        assert next(iter(data.train_dataloader()))[0].shape == (2, 64)

    def test_words_and_limit(self, dataset, shakespeare_root):
        data = dataset("tiny_shakespeare", shakespeare_root, unit="words", vocab_size=5, limit=100)
        assert data.fingerprint()["sizes"] == {"train": 100, "val": 121, "test": 121}

    def test_the_split_of_the_hubs_own_conversion(self, dataset, shakespeare_root):
        """refs/convert/parquet keeps files in a folder per split."""
        before = dataset("tiny_shakespeare", shakespeare_root).streams
        for path in list(shakespeare_root.glob("**/*.parquet")):
            folder = path.parent / path.name.split("-")[0]
            folder.mkdir()
            path.rename(folder / "0000.parquet")
        after = dataset("tiny_shakespeare", shakespeare_root).streams
        assert all(torch.equal(before[split], after[split]) for split in before)

    def test_a_missing_split(self, dataset, shakespeare_root):
        (path,) = shakespeare_root.glob("**/train-*")
        path.unlink()
        with pytest.raises(UserError, match=r"train-\*.parquet.\n.*repro data fetch tiny_sh"):
            dataset("tiny_shakespeare", shakespeare_root).setup()

    def test_too_small_a_vocabulary(self, dataset, shakespeare_root):
        with pytest.raises(UserError, match="vocab_size=3, the data have vocab_size=8"):
            dataset("tiny_shakespeare", shakespeare_root, vocab_size=3).setup()

    def test_an_unknown_unit(self, dataset):
        with pytest.raises(UserError, match="unit is characters or words"):
            dataset("ptb", unit="syllables")
