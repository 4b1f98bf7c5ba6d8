"""Building objects from configs, limited to code that was installed on purpose."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from repro.errors import ReproError, UserError, did_you_mean, first_line
from repro.knobs import KnobError
from repro.planning import trust
from repro.records.papers import load_papers

# No config is able to name, say, os.system: only these packages may be named, no name may begin
# with an underscore, and what it leads to must live in them too. A run directory that may come
# from somebody else can name far less than that: see `repro.planning.trust`.
TRUSTED = (
    "repro",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "optuna.pruners",
    "optuna.samplers",
)


def instantiate(config: DictConfig, role: trust.Role | None = None, **extra: Any) -> Any:
    """Builds what ``config._target_`` names, nested targets included.

    Args:
        config: a config with a ``_target_``.
        role: what is built, if the config comes from a run directory: then it may name only what is
            registered for that, unless the directory is the user's own.
        **extra: further keyword arguments of the target.

    Raises:
        UserError: a target is not trusted, does not exist, or refuses its arguments.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    nodes = list(targets(plain))
    for node in nodes:
        _check_target(node["_target_"])
    if role is not None and not trust.is_trusted():
        trust.check_targets(plain, [node["_target_"] for node in nodes], role)
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    try:
        return hydra_instantiate(config, **extra)
    except (InstantiationException, OmegaConfBaseException) as error:
        cause = _cause(error)
        if isinstance(cause, KnobError):
            cause = _as_typed(cause, str(error), nodes)
        if isinstance(cause, ReproError):
            raise cause from None
        if isinstance(cause, TypeError | OmegaConfBaseException):
            raise UserError(f"{config.get('_target_')}: {first_line(cause)}") from error
        raise cause from error


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Every part of a config that names what it builds, the outermost first.

    Raises:
        UserError: one of them does not name it by a text.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, dict):
        if "_target_" in plain:
            if not isinstance(plain["_target_"], str):
                raise UserError(f"_target_ takes the name of a class, not {plain['_target_']!r}.")
            yield plain
        for value in plain.values():
            yield from targets(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from targets(value)


def _check_target(target: str) -> None:
    trusted: tuple[str, ...] = TRUSTED
    if not _inside(target, trusted):  # then perhaps in a room of the user's own
        trusted = (*TRUSTED, *(paper.room.split(".")[0] for paper in load_papers()))
    if not _inside(target, trusted):
        raise UserError(
            f"The config names '{target}', which is outside the packages a config may use "
            f"({', '.join(dict.fromkeys(trusted))})."
        )
    if any(part.startswith("_") for part in target.split(".")):
        raise UserError(f"The config names '{target}', which is private.")
    module_name, _, attribute = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError):
        # A class method such as Class.build: look one level up.
        owner, _, name = module_name.rpartition(".")
        try:
            found = getattr(getattr(importlib.import_module(owner), name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"The config names '{target}', which does not exist.{_suggest(target)}"
            ) from error
    if not _inside(getattr(found, "__module__", None) or "", trusted):
        raise UserError(f"The config names '{target}', which leads outside the trusted packages.")


def _inside(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _suggest(target: str) -> str:
    module_name, _, attribute = target.rpartition(".")
    try:
        return did_you_mean(attribute, dir(importlib.import_module(module_name)))
    except (ImportError, ValueError):
        return ""


def _as_typed(error: KnobError, report: str, nodes: Iterable[dict[str, Any]]) -> KnobError:
    """The error under the name that a person would type, where Hydra's report tells it."""
    found = re.search(r"target '(\S+)':.*^full_key: (\S+)$", report, re.MULTILINE | re.DOTALL)
    if found is None:
        return error
    name = found[1].rpartition(".")[2]
    typed = any(node["_target_"].endswith(f".{name}") and error.knob in node for node in nodes)
    return KnobError(found[2], error.knob, error.rule) if typed else error


def _cause(error: BaseException) -> BaseException:
    """The outermost error of a chain that is meant for people; the root of it if there is none."""
    while not isinstance(error, ReproError) and error.__cause__ is not None:
        error = error.__cause__
    return error
