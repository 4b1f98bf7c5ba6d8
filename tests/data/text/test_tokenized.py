"""Text in a published model's tokens, drawn as the code of the papers draws it."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from repro.data.base.modules import TextData
from repro.data.text.tokenized import encode, load_tokenizer, tokenized_text
from repro.errors import UserError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [" ".join(f"w{(n * k) % 17}" for k in range(n)) for n in (3, 40, 90, 12, 60)]
INFO = {"hub": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "megabytes": 7}


@pytest.fixture
def root(tmp_path: Path, write_texts) -> Path:
    folder = tmp_path / "Salesforce" / "wikitext" / "wikitext-2-raw-v1"
    for split, lines in {"train": 9, "validation": 5, "test": 7}.items():
        write_texts(folder, split, [f"w1 w{n}" for n in range(lines)])
    words = {"<s>": 0, **{f"w{n}": n + 1 for n in range(17)}, "<unk>": 18}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    (tmp_path / "org" / "model").mkdir(parents=True)
    tokenizer.save(str(tmp_path / "org" / "model" / "tokenizer.json"))
    with gzip.open(tmp_path / "documents.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    return tmp_path


def made(root: Path, **knobs) -> TextData:
    given: dict[str, Any] = {
        "info": INFO,
        "tokenizer": "org/model",
        "root": str(root),
        "vocab_size": 19,
    }
    return tokenized_text("set", **(given | knobs))


def test_a_split_is_joined_by_empty_lines_and_begins_as_the_model_wants(root: Path) -> None:
    data = made(root)
    assert data.streams["test"].tolist() == [0, *(t for n in range(7) for t in (2, n + 1))]
    assert len(data.streams["train"]) == 1 + 2 * 9
    assert data.fingerprint()["sizes"] == {"train": 19, "val": 11, "test": 15}


def test_documents_are_drawn_as_by_the_official_code(root: Path) -> None:
    data = made(root, documents="documents.json.gz")
    tokenizer = load_tokenizer("org/model", root)
    random.seed(3)  # what that code does, with Python's global generator
    expected = []
    for _ in range(4):
        while True:
            i = random.randint(0, len(TEXTS) - 1)
            tokens = encode(tokenizer, TEXTS[i])
            if len(tokens) > 20:
                break
        i = random.randint(0, len(tokens) - 20 - 1)
        expected.append(tokens[i : i + 20])
    assert torch.equal(data.sample(4, 20, seed=3), torch.stack(expected).long())
    assert torch.equal(data.streams["train"], data.streams["val"])


def test_samples_and_cuts_of_plain_text() -> None:
    stream = torch.arange(103, dtype=torch.uint8)
    data = TextData(
        "count", lambda: dict.fromkeys(("train", "val", "test"), stream), vocab_size=103
    )
    drawn = data.sample(50, 10, seed=1)
    assert drawn.shape == (50, 10)
    assert (drawn.diff(dim=1) == 1).all()
    assert torch.equal(drawn, data.sample(50, 10, seed=1))
    assert not torch.equal(drawn, data.sample(50, 10, seed=2))
    assert torch.equal(data.cut("val", 10), torch.arange(100).view(10, 10))
    assert data.cut("test", 10, most=4)[:, 0].tolist() == [0, 20, 50, 70]
    assert data.sample(1, 103, seed=0)[0].tolist() == stream.tolist()
    with pytest.raises(UserError, match="too few for 104"):
        data.sample(1, 104, seed=0)
    with pytest.raises(UserError, match="103 val tokens: too few for 200"):
        data.cut("val", 200)


def test_what_is_missing_or_damaged_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repro.data.text.tokenized.TRIES", 20)
    with pytest.raises(UserError, match="hf download org/other"):
        made(root, tokenizer="org/other")
    with pytest.raises(UserError, match=r"allenai/c4 en/x\.json\.gz --repo-type dataset"):
        made(root, documents="allenai/c4/en/x.json.gz")
    with pytest.raises(UserError, match="no document of more than 500"):
        made(root, documents="documents.json.gz").sample(1, 500, seed=0)
    (root / "documents.json.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="is damaged"):
        made(root, documents="documents.json.gz").sample(1, 5, seed=0)
    (root / "org" / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        made(root)
