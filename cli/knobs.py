"""A paper's settings and what they mean: the keys of its config files and the comments beside them.

Hydra would compose them, but takes longer to import than people like to wait for `repro show`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from repro.records.files import YamlLoader, parse_yaml, read_yaml
from repro.records.layers import key_of
from repro.records.papers import Paper, config_folders, is_group

_DEFAULT_SCALE = "mini"
_NO_KNOBS = ("defaults", "paper", "arms", "scales", "report", "figures", "info", "reduced")


class Knob(NamedTuple):
    """One setting.

    Attributes:
        key: what is typed.
        default: its value at the default scale.
        meaning: the comment beside or above it, or else that of the mapping around it.
        table: the key of that mapping, if the comment is its; empty otherwise.
    """

    key: str
    default: str
    meaning: str
    table: str = ""


def knobs(paper: Paper) -> list[Knob]:
    """The settings of a paper's runs: its own first, then those of all papers and of the groups."""
    root = _file("config")
    layer = {key_of(text): text for text in paper.scales.get(_DEFAULT_SCALE, [])}
    choices = dict([*_choices(root), *_choices(paper.config_file)])
    choices |= {key: _value(text) for key, text in layer.items() if is_group(key)}

    own = list(_documented(paper.config_file))
    groups = [
        knob
        for group, choice in choices.items()
        for knob in _of_choice(f"{group}/{choice}", f"{group}.")
    ]
    found: dict[str, Knob] = {}
    for knob in (*_documented(root), *groups, *own):
        found = _put(found, knob)
    for key, text in layer.items():
        if text.startswith("~"):
            found = {k: knob for k, knob in found.items() if not f"{k}.".startswith(f"{key}.")}
        elif not is_group(key):
            for inside, value in _flat(key, _value(text)):
                found = _put(found, Knob(inside, value, ""))
    first = {knob.key for knob in own}
    told = [knob for knob in found.values() if knob.meaning or not knob.default.startswith("$")]
    return sorted(told, key=lambda knob: knob.key not in first)  # the rest only pass values on


def in_words(default: str) -> str:
    """A default as people read it: what follows another setting, or the environment, says which.

    Examples:
        >>> in_words("${oc.select:dataset.classes,${oc.select:dataset.targets,null}}")
        '= dataset.classes'
        >>> in_words("${oc.env:REPRO_DATA_ROOT,null}")
        '$REPRO_DATA_ROOT'
    """
    found = re.fullmatch(r"\$\{(oc\.select:|oc\.env:|)\.*([\w.]+)(,.*)?\}", default)
    if found is None:
        return default
    return f"${found[2]}" if found[1] == "oc.env:" else f"= {found[2]}"


def _put(found: dict[str, Knob], knob: Knob) -> dict[str, Knob]:
    """Sets a knob, in place of a mapping or of parts of one too; an earlier meaning stays."""
    earlier = found.get(knob.key, knob)
    others = {
        key: other
        for key, other in found.items()
        if not key.startswith(f"{knob.key}.") and not knob.key.startswith(f"{key}.")
    }
    told = knob if knob.meaning else earlier
    return {**others, knob.key: knob._replace(meaning=told.meaning, table=told.table)}


def _file(name: str) -> Path | None:
    """The config file of that name; the project's comes before the user's."""
    files = (folder / f"{name}.yaml" for folder in config_folders())
    return next((file for file in files if file.is_file()), None)


def _choices(file: Path | None) -> Iterator[tuple[str, str]]:
    """The config groups that a file's defaults list chooses from, and its choices."""
    for entry in _defaults(file):
        if isinstance(entry, dict):
            for group, choice in entry.items():
                if isinstance(choice, str):
                    yield group.removeprefix("override ").strip("/ "), choice


def _defaults(file: Path | None) -> list[Any]:
    content = read_yaml(file) if file else None
    return list((content or {}).get("defaults", []))


def _of_choice(path: str, prefix: str) -> Iterator[Knob]:
    """The settings of a group's choice, after those of the files that it starts from."""
    file = _file(path)
    for parent in _defaults(file):
        if isinstance(parent, str) and parent != "_self_":
            name, _, package = parent.partition("@")
            beside = f"{path.rpartition('/')[0]}/{name}"
            inside = prefix if package in ("", "_here_") else f"{prefix}{package}."
            yield from _of_choice(name[1:] if name.startswith("/") else beside, inside)
    yield from _documented(file, prefix)


def _documented(file: Path | None, prefix: str = "") -> Iterator[Knob]:
    """The settings of one file, with the comment beside each, or else the one above it."""
    if file is None:
        return
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, prefix: str, around: tuple[str, str]) -> Iterator[Knob]:
        for key, value in node.value:
            if key.value == "<<":  # YAML's merge: the keys of another mapping
                yield from walk(value, prefix, around)
                continue
            if key.value.startswith("_") or key.value in _NO_KNOBS:
                continue
            name = f"{prefix}{key.value}"
            if isinstance(value, yaml.MappingNode) and value.value:
                own = _comment(lines, key.start_mark, _behind(key, value))
                yield from walk(value, f"{name}.", (own, name) if own else around)
                continue
            written = text[value.start_mark.index : value.end_mark.index]
            is_long = "\n" in written or "_target_" in written
            own = _comment(lines, key.start_mark, key.end_mark if is_long else value.end_mark)
            told = (own, "") if own else around
            yield Knob(name, "…" if is_long else written, *told)

    node = yaml.compose(text, Loader=YamlLoader)
    if isinstance(node, yaml.MappingNode):
        yield from walk(node, prefix, ("", ""))


def _behind(key: yaml.Node, value: yaml.Node) -> yaml.Mark:
    """Where the comment on a mapping may begin: behind its key, or behind all of it on one line."""
    is_one_line = value.start_mark.line == key.start_mark.line == value.end_mark.line
    return value.end_mark if is_one_line else key.end_mark


def _comment(lines: list[str], start: yaml.Mark, end: yaml.Mark) -> str:
    beside = lines[end.line][end.column :] if end.line < len(lines) else ""
    if "#" in beside:
        return beside.partition("#")[2].strip()
    above: list[str] = []
    number = start.line - 1
    while number >= 0 and lines[number].startswith(f"{' ' * start.column}#"):
        above.insert(0, lines[number].strip(" #"))
        number -= 1
    return " ".join(above) if number >= 0 else ""  # a file begins with what all of it is


def _value(text: str) -> str:
    """The value of an override as it will stand in the config."""
    return text.partition("=")[2].replace("\\$", "$")


def _flat(key: str, value: str) -> Iterator[tuple[str, str]]:
    """The settings that one override changes: several where its value is ``{a:1,b:2}``."""
    inside = parse_yaml(value.replace(":", ": ")) if value.startswith("{") else value
    if isinstance(inside, dict):
        for name, part in inside.items():
            yield from _flat(f"{key}.{name}", str(part))
    else:
        yield key, value
