"""What a run directory may ask for, if nobody says that it is one's own.

A run directory is data, and may come from somebody else. What a user types is free; what is read
from a folder may name only what the installed project and the user's own config folder register
for that purpose: a data set in ``conf/dataset``, a logger in ``conf/logger`` and so on. The threat
model stands in SECURITY.md.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from repro.errors import UserError
from repro.planning import compose
from repro.records.files import read_yaml
from repro.records.papers import config_folders

TRUST_VARIABLE = "REPRO_TRUST"  # an environment variable, because workers and jobs must see it too
TRUST = "If it is your own, say so: repro resume --trust."

# The callbacks of a search's trials and of rehearsals, which run.json names; no other can be named.
PRUNING = "repro.search.pruning.PruneHopeless"
REHEARSING = "repro.training.rehearsal.Rehearsing"

Role = Literal["dataset", "module", "logger", "callback", "sweep"]
_GROUPS: dict[Role, tuple[str, ...]] = {
    "dataset": ("dataset",),
    "module": ("module", "paper"),
    "logger": ("logger",),
    "callback": ("callbacks", "profiler"),
    "sweep": ("sweep",),
}
_NOT_IN_MODULES = ("dataset", "logger", "hardware", "sweep", "callbacks", "profiler")
# Within an override, too; those called just target are stand-ins.
_NAMED = re.compile(r"(?:_target_|\btarget)['\"]?\s*[=:]\s*['\"]?([\w.]+)")
_WORD = re.compile(r"[\w.,:|&*()\[\]-]*")  # of a cluster: what no script takes for a command
# Settings of launchers that are numbers or such words. Others are as the hardware configs say.
_HARMLESS = (
    "n_jobs", "partition", "account", "qos", "constraint", "exclude", "timeout_min",
    "max_num_timeout", "signal_delay_s", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task",
    "gpus_per_node", "array_parallelism",
)  # fmt: skip


def is_trusted() -> bool:
    """Whether the run directories that this process executes are the user's own."""
    return os.environ.get(TRUST_VARIABLE) == "1"


@contextmanager
def trusted(is_own: bool = True) -> Iterator[None]:
    """Meanwhile run directories are the user's own, here and in the processes started here."""
    before = os.environ.get(TRUST_VARIABLE)
    if is_own:
        os.environ[TRUST_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(TRUST_VARIABLE, None)
        else:
            os.environ[TRUST_VARIABLE] = before


def check_targets(config: Any, named: Sequence[str], role: Role) -> None:
    """Refuses what is registered for another purpose, or not at all.

    Args:
        config: what ``named`` was found in.
        named: every ``_target_`` in it, the outermost first.
        role: what it is going to be.

    Raises:
        UserError: something is not registered.
    """
    folders = config_folders()
    allowed = registered(role, folders)
    inside = _parts(folders) if role == "module" else allowed
    for number, target in enumerate(named):
        if target not in (inside if number else allowed):
            raise UserError(
                f"The config names '{target}', which no installed config names for a {role}. "
                + TRUST
            )
    if role == "logger" and config not in _loggers(folders):
        raise UserError(f"'{named[0]}' has settings that no logger config has. {TRUST}")


def check_launcher(settings: Mapping[str, Any]) -> None:
    """Refuses settings of a Hydra launcher that could do more than share out runs.

    Args:
        settings: ``hardware.launcher`` of a run's config.

    Raises:
        UserError: there is such a setting, or no launcher of this name is installed.
    """
    known = _launchers(config_folders())
    for key, value in settings.items():
        if key == "name":
            compose.check_launcher(str(value))
        elif not _is_harmless(key, value) and (key, repr(value)) not in known:
            raise UserError(
                f"hardware.launcher.{key} is not as any hardware config has it. {TRUST}"
            )


def check_hydra(texts: Sequence[str]) -> None:
    """Refuses overrides of Hydra's own settings in study.json, but for the choice of a launcher.

    Raises:
        UserError: there is another one.
    """
    for override in compose.Layer.parse(texts, "study.json").overrides:
        key, plain = override.key_or_group, override.package is None
        if plain and key == "hydra/launcher" and not override.is_sweep_override():
            compose.check_launcher(str(override.value()))
            continue
        name = key.removeprefix("hydra.launcher.")
        if not plain or name == key or not _is_harmless(name, override.value()):
            raise UserError(f"study.json sets '{key}' of Hydra. {TRUST}")


@functools.cache
def registered(role: Role, folders: tuple[Path, ...]) -> frozenset[str]:
    """The targets that config files name for a purpose."""
    own = [PRUNING, REHEARSING] if role == "callback" else []
    return frozenset([*own, *_named_in(folders, lambda group: group in _GROUPS[role])])


@functools.cache
def _parts(folders: tuple[Path, ...]) -> frozenset[str]:
    """The targets that may stand within a module: models, methods, optimizers and so on."""
    return frozenset(_named_in(folders, lambda group: group not in _NOT_IN_MODULES))


def _named_in(folders: Sequence[Path], is_group_meant: Callable[[str], bool]) -> Iterator[str]:
    """The targets in the config files of some groups, but for those in comments."""
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            if is_group_meant(file.relative_to(folder).parts[0]):
                for line in file.read_text(encoding="utf-8").splitlines():
                    if not line.lstrip().startswith("#"):
                        yield from _NAMED.findall(line)


@functools.cache
def _loggers(folders: tuple[Path, ...]) -> tuple[Any, ...]:
    """Every logger as a config file describes it."""
    contents = _contents(folders, "logger")
    return tuple(each for content in contents for each in (content.get("loggers") or {}).values())


@functools.cache
def _launchers(folders: tuple[Path, ...]) -> frozenset[tuple[str, str]]:
    """Every setting of a launcher in a hardware config, as key and value."""
    contents = _contents(folders, "hardware")
    found = [content.get("launcher") or {} for content in contents]
    return frozenset((key, repr(value)) for each in found for key, value in each.items())


def _contents(folders: Sequence[Path], group: str) -> list[dict[str, Any]]:
    files = [file for folder in folders for file in sorted((folder / group).rglob("*.yaml"))]
    return [read_yaml(file) or {} for file in files]


def _is_harmless(key: str, value: Any) -> bool:
    is_word = isinstance(value, str) and _WORD.fullmatch(value) is not None
    return key in _HARMLESS and (is_word or value is None or isinstance(value, int | float))
