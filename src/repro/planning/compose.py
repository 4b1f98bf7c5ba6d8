"""From what the user typed to composed configs: paper < scale < arm < user."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import pickle
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import omegaconf.base
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from repro.errors import UserError, did_you_mean, first_line
from repro.records import layers
from repro.records.papers import OF_REPORTS, config_folders, is_group

# OmegaConf parses an interpolation whenever it meets it, a third of what planning takes, and only
# reads what comes of that.
omegaconf.base.parse = functools.lru_cache(maxsize=10_000)(omegaconf.base.parse)

STUDY_BLOCKS = ("arms", "scales")
Point = dict[str, Any]  # one point of a grid: override key -> value
Stamps = tuple[tuple[str, int, int], ...]  # path, time of change in ns and bytes of each file


@dataclass
class _Memory:
    """What was read and composed so far: Hydra parses some twenty files for each config.

    Pickled, because unpickling is ten times faster than copying.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    configs: dict[Hashable, bytes] = field(default_factory=dict)
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)


@functools.lru_cache(maxsize=4)
def _memory_of(_stamps: Stamps) -> _Memory:
    """What is known of config files, as long as they are what they were."""
    return _Memory()


_memory = _memory_of(())


class _ReadOnce:
    """Hydra's config files, parsed once for all compositions; its own memory lasts for one.

    Args:
        repository: of Hydra's config loader.
    """

    def __init__(self, repository: Any) -> None:
        self.repository = repository
        self.forgotten: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Whatever else Hydra asks a repository.

        Raises:
            AttributeError: there is no repository yet: a worker unpickles this just now.
        """
        if "repository" not in vars(self):
            raise AttributeError(name)
        return getattr(self.repository, name)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A copy, because what is composed from it writes into it."""
        if config_path not in _memory.files:
            found = self.repository.load_config(config_path)
            _drop(found, config_path, OF_REPORTS)
            _memory.files[config_path] = pickle.dumps(found)
        copied: ConfigResult | None = pickle.loads(_memory.files[config_path])
        _drop(copied, config_path, self.forgotten)
        return copied


def _drop(found: ConfigResult | None, path: str, keys: Sequence[str]) -> None:
    """Takes top-level keys out of a paper's file: merging large blocks takes long."""
    is_global = path == "config" or path.startswith("paper/")
    if found is not None and is_global and isinstance(found.config, DictConfig):
        with flag_override(found.config, ["struct", "readonly"], False):
            for key in keys:
                found.config.pop(key, None)


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Makes Hydra's compose API available over the project's and the user's config folders."""
    global _memory
    GlobalHydra.instance().clear()
    _memory = _memory_of(tuple(stamp for folder in config_folders() for stamp in _stamps(folder)))
    with initialize_config_module("repro.conf", version_base="1.3"):
        _loader().repository = _ReadOnce(_loader().repository)
        yield


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    for place, _, names in os.walk(folder.resolve()):
        for path in (os.path.join(place, name) for name in names if name.endswith(".yaml")):
            try:
                about = os.stat(path)
            except OSError:  # such as an editor's lock, a link to nowhere
                continue
            yield path, about.st_mtime_ns, about.st_size


def forget_study() -> None:
    """Leaves arms and scales out of what is composed from here on: no run's config has them."""
    _loader().repository.forgotten = STUDY_BLOCKS


def _loader() -> Any:
    return GlobalHydra.instance().config_loader()


@dataclass(frozen=True)
class Layer:
    """Parsed overrides of equal rank: those of a scale, of an arm, or of the user."""

    overrides: tuple[Override, ...]

    @classmethod
    def parse(cls, texts: Sequence[str], origin: str) -> Layer:
        """Parses override strings.

        Args:
            texts: overrides in Hydra's syntax.
            origin: who wrote them, for the error message.

        Raises:
            UserError: an override is malformed, or given twice.
        """
        parsed: list[Override] = []
        for text in texts:
            try:
                parsed.extend(_parsed(text))
            except (OverrideParseException, HydraException) as error:
                raise UserError(
                    f"{origin}: {text!r} is not an override (write key=value): {first_line(error)}"
                ) from None
        seen: set[str] = set()
        for override in parsed:
            name = f"{override.key_or_group}@{override.package}"
            if name in seen:
                raise UserError(f"{origin}: '{override.key_or_group}' is given twice.")
            seen.add(name)
        return cls(tuple(parsed))

    @property
    def texts(self) -> list[str]:
        """The overrides as they were typed."""
        return [override.input_line or "" for override in self.overrides]

    def where(self, predicate: Callable[[Override], bool]) -> Layer:
        """Those of the overrides that a predicate accepts."""
        return Layer(tuple(filter(predicate, self.overrides)))

    def pop(self, *keys: str) -> tuple[Layer, dict[str, Any]]:
        """Splits off plain ``key=value`` overrides: the rest, and the values of ``keys``."""
        taken = {o.key_or_group: o.value() for o in self.overrides if o.key_or_group in keys}
        return self.where(lambda o: o.key_or_group not in keys), taken


@functools.cache  # arms share many, and Hydra's parser takes a millisecond for each
def _parsed(text: str) -> list[Override]:
    return OverridesParser.create().parse_overrides([text])


def stack(ranked: Sequence[Layer]) -> list[str]:
    """Merges layers, the last being the strongest, into one list of override strings."""
    return layers.stack([layer.texts for layer in ranked], is_group)


def expand_grid(layer: Layer) -> list[tuple[Layer, Point]]:
    """Expands ``a=1,2`` overrides into the points of their grid, in Hydra's order.

    Raises:
        UserError: one of them is an interval.
    """
    parser = OverridesParser.create()
    swept = [o for o in layer.overrides if o.is_sweep_override()]
    fixed = tuple(o for o in layer.overrides if not o.is_sweep_override())
    axes: list[list[str]] = []
    for override in swept:
        if not override.is_discrete_sweep():
            raise UserError(
                f"'{override.input_line}' is an interval: a grid needs listed values "
                "(a,b or range(1,9)); `repro sweep` searches intervals."
            )
        element = override.get_key_element()
        axes.append([f"{element}={value}" for value in override.sweep_string_iterator()])
    points = []
    for texts in itertools.product(*axes):
        chosen = parser.parse_overrides(list(texts))
        point = {override.key_or_group: override.value() for override in chosen}
        points.append((Layer((*fixed, *chosen)), point))
    return points


def refuse_grid(layer: Layer) -> None:
    """Refuses listed values, which take ``-m``.

    Raises:
        UserError: there are some.
    """
    for override in layer.overrides:
        if override.is_sweep_override():
            raise UserError(
                f"'{override.input_line}' lists several values: add -m to run the grid, "
                "or write [a,b] for a list."
            )


def compose_config(
    overrides: Sequence[str], config_name: str | None = "config", with_hydra: bool = False
) -> DictConfig:
    """Composes one config, from nothing but the overrides where ``config_name`` is null.

    ``with_hydra`` keeps Hydra's own settings in it.

    Raises:
        UserError: a key, group choice or value is wrong; the message names the closest good one.
    """
    folders = [quoted(f"file://{Path(folder).resolve()}") for folder in config_folders()[1:]]
    texts = [f"hydra.searchpath=[{','.join(folders)}]", *overrides]
    request = config_name, *texts, _loader().repository.forgotten
    if request in _memory.configs:
        kept: DictConfig = pickle.loads(_memory.configs[request])
        return kept
    try:
        config = compose(config_name, texts, return_hydra_config=with_hydra)
    except MissingConfigException as error:
        raise UserError(_explain_missing(error)) from None
    except Exception as error:  # Hydra has its own types for only some of what can be wrong
        raise UserError(_explain_composition(error, overrides)) from None
    OmegaConf.set_struct(config, True)
    if not with_hydra:  # Hydra's own settings hold the current folder
        _memory.configs[request] = pickle.dumps(config)
    return config


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """Like `compose_config`, for one of many configs that choose the same groups.

    Hydra merges its files once for all of them, and what is set on top is merged into a copy, as
    Hydra does it.
    """
    parsed = Layer.parse(overrides, "override")
    config = compose_config(parsed.where(lambda o: not sets_a_value(o)).texts)
    try:
        for override in filter(sets_a_value, parsed.overrides):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException:  # something is wrong, and Hydra finds out what
        return compose_config(overrides)
    return config


def sets_a_value(override: Override) -> bool:
    """Whether it is an ordinary ``key=value``: no group, nothing added or deleted."""
    changes = not (override.is_add() or override.is_force_add() or override.is_delete())
    return changes and override.package is None and not is_group(override.key_or_group)


def check_types(config: DictConfig, base: DictConfig, layer: Layer) -> None:
    """Compares each overridden value with the type of the value that it replaces.

    Raises:
        UserError: e.g. a word where the config holds a number.
    """
    for override in layer.overrides:
        key = override.key_or_group
        if "@" in key or "/" in key or override.is_delete():
            continue
        try:
            old, new = OmegaConf.select(base, key), OmegaConf.select(config, key)
        except OmegaConfBaseException:
            continue
        if not _same_kind(old, new):
            raise UserError(f"{key} takes {_kind(old)} (default {_plain(old)}), not {_plain(new)}.")


def resolve(config: DictConfig) -> dict[str, Any]:
    """A config's content, all resolved but ``module``, which points at the groups above it.

    A `UserError` says so if an interpolation leads nowhere.
    """
    with explained(config):
        module = config.get("module")
        unresolved = OmegaConf.to_container(module, resolve=False) if module is not None else None
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        if unresolved is not None:
            plain["module"] = unresolved
        return plain  # type: ignore[return-value]


@contextmanager
def explained(config: DictConfig) -> Iterator[None]:
    """Turns what OmegaConf says about interpolations of ``config`` into a line for its user.

    Raises:
        UserError: an interpolation leads nowhere.
    """
    try:
        yield
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        reason = first_line(error)
        missing = re.fullmatch(r"Interpolation key '(\w+)\.(.+)' not found", reason)
        if missing and missing[1] in config:
            reason = f"the chosen {missing[1]} has no {missing[2]}. Choose another {missing[1]}."
        raise UserError(f"{key} cannot be filled in: {reason}") from None


def quoted(value: str) -> str:
    """A text as a quoted value in Hydra's override grammar: no interpolation, whatever is in it."""
    # Backslashes mean something only before what they could escape.
    escaped = re.sub(r"(\\*)('|\$\{|\Z)", lambda found: _escaped(*found.groups()), value)
    return f"'{escaped}'"


def _escaped(backslashes: str, special: str) -> str:
    return 2 * backslashes + (f"\\{special}" if special else "")


def choices(group: str) -> tuple[str, ...]:
    """The names that a config group offers, those in folders inside it (``skeleton/soft``) too.

    Hydra reads files for every answer, so each is kept.
    """
    if group not in _memory.choices:
        loader = _loader()
        inside = loader.get_group_options(group, ObjectType.GROUP)
        nested = [f"{name}/{choice}" for name in inside for choice in choices(f"{group}/{name}")]
        _memory.choices[group] = tuple(sorted([*loader.get_group_options(group), *nested]))
    return _memory.choices[group]


def check_launcher(name: str) -> None:
    """Refuses a launcher that is not installed.

    Raises:
        UserError: it is not.
    """
    Plugins.instance()  # registers the launchers that are installed
    known = choices("hydra/launcher")
    if name not in known:
        extra = " It comes with: pip install 'gradient-repro[slurm]'." if "submitit" in name else ""
        raise UserError(
            f"There is no Hydra launcher '{name}'.{did_you_mean(name, known)}{extra} "
            f"Installed: {', '.join(known)}."
        )


def _explain_missing(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").partition("/")
    options = choices(group)
    if not error.options:
        return first_line(error)
    return (
        f"There is no {group} '{name}'.{did_you_mean(name, options)} Known: {', '.join(options)}."
    )


def no_setting(key: str, known: Iterable[str]) -> str:
    """What to say of a key that no config has; ``known`` are those that one has."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
        candidate for candidate in known if candidate.endswith("." + key)
    ]
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"There is no setting '{key}'.{hint} To add a new one write +{key}=…"


def _explain_composition(error: Exception, overrides: Sequence[str]) -> str:
    message = str(error)
    for override in Layer.parse(overrides, "override").overrides:
        key = override.key_or_group
        value = override.value()
        if not isinstance(value, str | list | None) and (not key or choices(key)):
            return f"There is no {key or 'setting'} '{value}'. Write key=value."
        if f"'{key}'" not in message or override.is_add():
            continue
        without = [o for o in overrides if o != override.input_line]
        try:
            base = compose_run(without)
        except UserError:
            break
        known = layers.flatten(OmegaConf.to_container(base, resolve=False))
        if key in known:  # then it is not the key that is wrong
            break
        return no_setting(key, known)
    return " ".join(message.split("\n")[:2]) or type(error).__name__


def _same_kind(old: Any, new: Any) -> bool:
    if old is None or new is None or OmegaConf.is_config(old) != OmegaConf.is_config(new):
        return old is None or new is None or isinstance(old, str)
    if OmegaConf.is_config(old):
        return OmegaConf.is_list(old) == OmegaConf.is_list(new)
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) == isinstance(new, bool)
    if isinstance(old, float):
        return isinstance(new, int | float)
    if isinstance(old, int):
        return isinstance(new, int) or (isinstance(new, float) and new.is_integer())
    return True


def _kind(value: Any) -> str:
    if OmegaConf.is_list(value):
        return "a list"
    if OmegaConf.is_dict(value):
        return "a mapping"
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(type(value), "text")


def _plain(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return repr(plain)
