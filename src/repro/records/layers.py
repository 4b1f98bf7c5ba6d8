"""Settings without Hydra: how lists of overrides stack and inherit, and nested settings by key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repro.errors import UserError, did_you_mean

IsGroup = Callable[[str], object]  # whether a name is that of a config group
_LIKE = "like="
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KEY = r"[\w$./-]+(@[\w.]*)?"
_OVERRIDE = re.compile(rf"\+{{0,2}}{_KEY}=.*|~{_KEY}(=.*)?", re.DOTALL)


def stack(layers: Sequence[Sequence[str]], is_group: IsGroup) -> list[str]:
    """Merges lists of overrides, the last being the strongest, into one.

    A later override of the same key replaces the earlier one. Choosing a config group drops what
    earlier layers said inside that group, because it was meant for another choice.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        for name in (key_of(text).partition("@")[0] for text in layer):
            inside = name.replace("/", ".") + "."
            dropped = [key for key in merged if key.startswith(inside)]
            if dropped and is_group(name):
                merged = {key: text for key, text in merged.items() if key not in dropped}
        for text in layer:
            earlier = merged.pop(key_of(text), "")
            if earlier.startswith("+") and not text.startswith(("+", "~")):
                # The earlier layer adds the key; without its `+` the key would be unknown.
                text = f"++{text}"
            merged[key_of(text)] = text
    return list(merged.values())


def expand(named: Any, kind: str, is_group: IsGroup) -> dict[str, list[str]]:
    """Replaces each ``like=other`` that a list of overrides begins with by that list.

    Args:
        named: a mapping from names to lists of overrides; null stands for an empty list.
        kind: what is named, for error messages: ``arm`` or ``scale``.
        is_group: whether a name is that of a config group.

    Raises:
        UserError: a name or an override is malformed, a key is given twice, or a list inherits
            from an unknown one or, in a circle, from itself.
    """
    if not isinstance(named, Mapping):
        raise UserError(f"{kind}s is a mapping from names to lists of overrides, not {named!r}.")
    for name in map(str, named):
        if not _NAME.fullmatch(name):
            raise UserError(f"{kind} '{name}': a name takes letters, digits, '_', '-' and '.'.")
    own = {str(name): _checked(texts, f"{kind} '{name}'") for name, texts in named.items()}
    expanded: dict[str, list[str]] = {}

    def expand_one(name: str, heirs: tuple[str, ...] = ()) -> list[str]:
        if name in heirs:
            raise UserError(f"{kind}s inherit in a circle: {' <- '.join((*heirs, name))}.")
        if name not in expanded:
            texts = own[name]
            if texts and texts[0].startswith(_LIKE):
                parent = texts[0].removeprefix(_LIKE)
                if parent not in own:
                    raise UserError(
                        f"{kind} '{name}' is like '{parent}', which is no {kind} of this paper."
                        f"{did_you_mean(parent, own)}"
                    )
                texts = stack([expand_one(parent, (*heirs, name)), texts[1:]], is_group)
            expanded[name] = texts
        return expanded[name]

    return {name: expand_one(name) for name in own}


def inherit(named: Mapping[str, Any], family: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a list for each of a family that has none, but is ``like`` one that has.

    Args:
        named: a mapping from some names of the family to lists of overrides.
        family: a mapping that `expand` takes.
    """
    parents = {
        name: texts[0].removeprefix(_LIKE)
        for name, texts in family.items()
        if texts and texts[0].startswith(_LIKE)
    }
    added = {}
    for name in parents:
        ancestor = name
        while ancestor not in named and ancestor in parents:
            ancestor = parents[ancestor]
        if ancestor in named:
            added[name] = named[ancestor]
    return {**added, **named}


def key_of(text: str) -> str:
    """The key of an override, with its package if any: ``++a.b=1`` has the key ``a.b``."""
    return text.lstrip("+~").partition("=")[0]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to ``{"a.b": value}``; lists stay values."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _checked(texts: Any, origin: str) -> list[str]:
    """A list of overrides with well-formed keys; their values are left to Hydra's parser.

    Raises:
        UserError: it is no list, or one is malformed, given twice or out of place.
    """
    if not isinstance(texts, list | None):
        raise UserError(f"{origin} takes a list of overrides, not {texts!r}.")
    checked = [str(text) for text in texts or []]
    seen: set[str] = set()
    for text in checked:
        if not _OVERRIDE.fullmatch(text):
            raise UserError(f"{origin}: {text!r} is not an override (write key=value).")
        key = key_of(text)
        if key in seen:
            raise UserError(f"{origin}: '{key}' is given twice.")
        seen.add(key)
    if any(text.startswith(_LIKE) for text in checked[1:]):
        raise UserError(f"{origin}: {_LIKE}… comes first; what follows changes it.")
    return checked
