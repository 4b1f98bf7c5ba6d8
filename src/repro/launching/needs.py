"""What a study's runs need and this machine lacks, found before the first of them starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from repro.data.base import catalog
from repro.errors import UserError
from repro.planning import extras

if TYPE_CHECKING:
    from repro.planning.plan import Plan

SHOWN = 5  # arms named in a message


def check(plan: Plan) -> None:
    """Looks for the data sets and the optional packages of all arms.

    Raises:
        UserError: something is missing.
    """
    problem = lacking(plan)
    if problem is not None:
        raise UserError(problem)


def lacking(plan: Plan) -> str | None:
    """What is missing, for which arms, and how to get it; None if nothing is."""
    arms = list(dict.fromkeys(run.arm for run in plan.runs))
    unlike = {(run.arm, repr(run.point)): run for run in plan.runs}  # but for their seeds
    lacking_arms: dict[str, dict[str, None]] = {}  # by what they lack
    for (arm, _), run in unlike.items():
        for problem in _missing(run.content):
            lacking_arms.setdefault(problem, {})[arm] = None
    lines = [f"{_who(list(some), arms)}: {problem}" for problem, some in lacking_arms.items()]
    return " ".join(lines) or None


def _missing(content: Mapping[str, Any]) -> list[str]:
    """What one run lacks."""
    dataset = content["dataset"]
    info = dataset.get("info") or {}
    packages = extras.missing([*content.get("needs", ()), *info.get("needs", ())])
    root = dataset.get("root") or content["data"]["root"]
    if not info or _is_stand_in(dataset):
        return packages
    # Of a large corpus the run may read a few files only.
    problem = catalog.problem_of(dataset, root, dataset.get("shards"))
    return packages if problem is None else [*packages, " ".join(problem.split())]


def _is_stand_in(dataset: Mapping[str, Any]) -> bool:
    """Whether a rehearsal does without the files of a data set, or of each set of a suite."""
    sets = dataset.get("sets")  # of a suite; elsewhere names of folders or files
    if isinstance(sets, Mapping) and all(isinstance(each, Mapping) for each in sets.values()):
        return all(map(_is_stand_in, sets.values()))
    info = dataset.get("info") or {}
    return bool(dataset["_target_"] == info.get("stand_in", {}).get("target"))


def _who(subset: list[str], arms: list[str]) -> str:
    if len(subset) == len(arms):
        return "Nothing can run"
    more = f" and {len(subset) - SHOWN} more" if len(subset) > SHOWN else ""
    return f"{len(subset)} of {len(arms)} arms ({', '.join(subset[:SHOWN])}{more}) cannot run"
