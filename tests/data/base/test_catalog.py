"""The catalogue: what there is, what is here, how it gets here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from repro.data.base import catalog
from repro.errors import UserError
from repro.records.papers import CONFIG_DIR_VARIABLE


def test_every_config_is_described(tmp_path):
    entries = {entry.name: entry for entry in catalog.describe(tmp_path / "hf")}
    assert {"digits", "mnist", "cifar10", "imagenet", "ptb", "stdlib_text", "uci"} <= set(entries)
    assert all(entry.licence and entry.source for entry in entries.values())
    assert entries["digits"].description.startswith("Handwritten digits")
    assert all(entry.present == entry.bundled for entry in entries.values())
    assert all(len(e.problem.splitlines()) <= 3 for e in entries.values() if e.problem)


def test_a_local_copy_is_found(mnist_root):
    entries = {entry.name: entry for entry in catalog.describe(mnist_root)}
    assert entries["mnist"].present
    assert entries["mnist"].place == mnist_root / "ylecun" / "mnist" / "mnist"
    assert catalog.fetch("mnist", mnist_root) == entries["mnist"].place
    assert catalog.check("mnist", mnist_root) == {"train": 40, "test": 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid YAML"),
        ("- a", "info takes source"),
        ("info: 3", "info takes source"),
        ("info: {source: mine}", "info takes source"),
    ],
)
def test_a_malformed_config_of_ones_own_is_said(tmp_path, monkeypatch, text, message):
    file = tmp_path / "dataset" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(text)
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        catalog.describe()
    assert str(file) in str(error.value)


def test_the_environment_names_the_root(mnist_root, monkeypatch):
    monkeypatch.setenv("REPRO_DATA_ROOT", str(mnist_root))
    assert catalog.check("mnist") == {"train": 40, "test": 20}


def test_check_finds_damage(mnist_root):
    (path,) = mnist_root.glob("**/test-*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        catalog.check("mnist", mnist_root)


def test_fetch_asks_the_hub_for_the_files_and_no_more(mnist_root, tmp_path, monkeypatch):
    asked: dict[str, Any] = {}

    def snapshot_download(repository, **how):
        asked.update(how, repository=repository)
        (mnist_root / "ylecun").rename(how["local_dir"].parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    root = tmp_path / "new"
    root.mkdir()
    assert catalog.fetch("mnist", root) == root / "ylecun" / "mnist" / "mnist"
    assert asked["repository"] == "ylecun/mnist"
    assert asked["repo_type"] == "dataset"
    assert "mnist/train-*.parquet" in asked["allow_patterns"]
    assert asked["revision"] is None


def test_fetch_offline_is_one_clear_message(tmp_path, monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="no route to host\nWithout a network") as caught:
        catalog.fetch("ptb", tmp_path)
    assert len(str(caught.value).splitlines()) <= 3


def test_fetch_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'gradient-repro\[data\]'"):
        catalog.fetch("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minst", "no data set 'minst'. Did you mean 'mnist'"),
        ("digits", "needs no download"),
        ("uci", "cannot be fetched. Source: https"),
    ],
)
def test_what_cannot_be_fetched(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        catalog.fetch(name, tmp_path / "hf")


def test_importing_it_is_cheap():
    heavy = "{'torch', 'lightning', 'pyarrow', 'datasets', 'sklearn', 'huggingface_hub'}"
    code = (
        f"import sys, repro.data.base.catalog as c; c.describe(); print({heavy} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
