"""Which metrics a run may log: what its module and method declare, held against names in use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from hydra.utils import get_object
from omegaconf import DictConfig

from repro.errors import UserError, did_you_mean
from repro.planning.instantiate import targets
from repro.training.startup import import_lightning

# What every run has, whatever its module.
ALWAYS = {
    "steps": "updates",
    "time/train_seconds": "seconds of training steps alone, of the last attempt",
    "time/step_ms": "milliseconds of a step",
}


def declared(config: DictConfig) -> dict[str, str]:
    """The metrics of the run that a composed config describes, by name or pattern with ``*``.

    They stand in the ``METRICS`` of the classes that ``config.module`` names, parents included.
    """
    import_lightning()  # quickly, before a class that is looked up does
    found = dict(ALWAYS)
    for part in targets(config.module):
        for kind in getattr(get_object(part["_target_"]), "__mro__", ()):
            found |= vars(kind).get("METRICS", {})
    return found


def undeclared(names: Iterable[str], known: Mapping[str, str]) -> list[str]:
    """Those of the names that no declaration covers.

    Args:
        names: of metrics, such as the keys of a summary.
        known: what `declared` returned.

    Examples:
        >>> undeclared(["test/loss_60", "test/los"], {"test/loss_*": "nats"})
        ['test/los']
    """
    return [name for name in names if not any(fnmatchcase(name, each) for each in known)]


def check_declared(
    names: Iterable[str],
    arms: Collection[str],
    logged: Mapping[str, Mapping[str, str]],
    reader: str,
) -> None:
    """Checks that at least one of some arms logs each metric that is read of them.

    Args:
        names: metrics.
        arms: whose they should be; nothing is said unless all of them are in ``logged``.
        logged: by arm, what `declared` returned.
        reader: who reads the metrics, for the message.

    Raises:
        UserError: none of them does.
    """
    if not set(arms) <= logged.keys():
        return
    known = {name: meaning for arm in arms for name, meaning in logged[arm].items()}
    for name in undeclared(names, known):
        plain = [each for each in known if "*" not in each]
        raise UserError(f"{reader}: no arm logs '{name}'.{did_you_mean(name, plain)}")
