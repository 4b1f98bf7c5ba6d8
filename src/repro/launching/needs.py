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
    said = lacking(plan)
    if said is not None:
        raise UserError(said)


def lacking(plan: Plan) -> str | None:
    """What is missing, for which arms, and how to get it; None if nothing is."""
    arms = list(dict.fromkeys(run.arm for run in plan.runs))
    unlike = {(run.arm, repr(run.point)): run for run in plan.runs}  # but for their seeds
    found: dict[str, dict[str, None]] = {}
    for (arm, _), run in unlike.items():
        for said in _missing(run.content):
            found.setdefault(said, {})[arm] = None
    return " ".join(f"{_who(list(few), arms)}: {said}" for said, few in found.items()) or None


def _missing(content: Mapping[str, Any]) -> list[str]:
    """What one run lacks."""
    dataset = content["dataset"]
    info = dataset.get("info") or {}
    said = extras.missing([*content.get("needs", ()), *info.get("needs", ())])
    root = dataset.get("root") or content["data"]["root"]
    looked_for = info and not _is_stand_in(dataset)
    # Of a large corpus the run may read a few files only.
    problem = catalog.problem_of(dataset, root, dataset.get("shards")) if looked_for else None
    return said if problem is None else [*said, " ".join(problem.split())]


def _is_stand_in(dataset: Mapping[str, Any]) -> bool:
    """Whether a rehearsal does without the files of a data set, or of each set of a suite."""
    if sets := dataset.get("sets"):
        return all(map(_is_stand_in, sets.values()))
    info = dataset.get("info") or {}
    return bool(dataset["_target_"] == info.get("stand_in", {}).get("target"))


def _who(few: list[str], all_: list[str]) -> str:
    if len(few) == len(all_):
        return "Nothing can run"
    more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
    return f"{len(few)} of {len(all_)} arms ({', '.join(few[:SHOWN])}{more}) cannot run"
