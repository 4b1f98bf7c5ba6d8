"""Configs, constructors and docstrings name the same knobs, whatever files there are."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

CONF = Path(str(files("repro.conf")))
# What a paper composes is checked by planning its arms; it names its own module.
CONFIGS = sorted(
    path for path in CONF.glob("*/**/*.yaml") if path.relative_to(CONF).parts[0] != "paper"
)


@cache
def load(path: Path) -> DictConfig:
    """A config with the others of its group that it builds upon."""
    own = OmegaConf.load(path)
    assert isinstance(own, DictConfig)
    # Those that go elsewhere in the config (`diabetes@sets.diabetes`) are files of their own.
    parents = [name for name in own.pop("defaults", []) if "@" not in str(name)]
    parts = [own if name == "_self_" else load(found(name, path.parent)) for name in parents]
    merged = OmegaConf.merge(*(parts if "_self_" in parents else [*parts, own]))
    assert isinstance(merged, DictConfig)
    return merged


def found(name: str, folder: Path) -> Path:
    """The file of an entry of a defaults list: absolute, or beside the one that lists it."""
    return CONF / f"{name[1:]}.yaml" if name.startswith("/") else folder / f"{name}.yaml"


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Every part of a config that names what it builds."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def documented(target: Any) -> dict[str, str]:
    """The entries of a docstring's Args (a dataclass's Attributes), and what each says."""
    title = "Args|Attributes" if dataclasses.is_dataclass(target) else "Args"
    section = re.search(rf"^(?:{title}):\n((?: {{4}}.*\n?|\n)*)", doc_of(target), re.MULTILINE)
    text = section[1] if section else ""
    entries = re.split(r"^ {4}\*{0,2}(\w+)(?: \(.*?\))?:", text, flags=re.MULTILINE)
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def doc_of(target: Any) -> str:
    return (inspect.getdoc(target) or "") + "\n"


def arguments(target: Any) -> set[str]:
    """What may be given: own parameters, and what the entry of ``**rest`` names or refers to."""
    parameters = inspect.signature(target).parameters.values()
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for rest in (p.name for p in parameters if p.kind is p.VAR_KEYWORD):
        entry = documented(target).get(rest, "")
        names |= set(re.findall(r"``(\w+)``", entry))
        for reference in re.findall(r"(?<!`)`([\w.]+)`(?!`)", entry):
            found = getattr(importlib.import_module(target.__module__), reference, None)
            found = found or get_object(reference)
            for taker in found.values() if isinstance(found, dict) else [found]:
                names |= arguments(taker)
    return names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(CONF)))
def test_a_config_names_what_its_target_takes_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    for node in targets(OmegaConf.to_container(load(path))):
        target = get_object(node["_target_"])
        keys = {key for key in node if not str(key).startswith("_")}
        assert keys <= arguments(target), f"not taken: {keys - arguments(target)}"
        explained = {
            key
            for key in keys
            if re.search(rf"^ *{key}:.*#", text, re.MULTILINE)
            or re.search(rf"\b{key}\b", doc_of(target))
            or key not in inspect.signature(target).parameters  # documented where it is passed on
        }
        assert explained == keys, f"not explained: {keys - explained}"


OWN = sorted(
    {
        name
        for path in CONFIGS
        for name in re.findall(r"_target_: (repro\.[\w.]+)", path.read_text())
    }
)


@pytest.mark.parametrize("name", OWN)
def test_every_argument_is_documented_and_every_documented_one_exists(name: str) -> None:
    target = get_object(name)
    assert set(documented(target)) == set(inspect.signature(target).parameters)
