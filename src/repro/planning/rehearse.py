"""From the plan of a study to that of its rehearsal: one seed, stand-ins for what is not here.

Everything else stays as it is, so that what is rehearsed is what will run: model, method,
optimizer, schedule, precision, strategy. `repro.training.rehearsal` ends each run after some steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repro.planning.plan import Plan, PlannedRun

EVAL_BATCHES = 2  # of each validation and test
JOB_MINUTES = 30  # of a cluster, for a rehearsal


def rehearsed(plan: Plan, steps: int, minutes: float) -> Plan:
    """The rehearsal of a study: the runs of its first seed.

    Args:
        plan: the study.
        steps: of each run.
        minutes: after which a run ends, whatever the number of steps.
    """
    seeds = list(dict.fromkeys(run.seed for run in plan.runs))
    settings = {"steps": steps, "minutes": minutes, "eval_batches": EVAL_BATCHES}
    runs = [_rehearsed(run, settings) for run in plan.runs if run.seed == seeds[0]]
    return replace(plan, runs=runs, rehearsal={"seeds": len(seeds), **settings})


def _rehearsed(run: PlannedRun, settings: dict[str, Any]) -> PlannedRun:
    content: dict[str, Any] = stood_in(run.content)
    training, launcher = content["training"], content["hardware"]["launcher"]
    content["training"] = training | {
        "test_with": "none" if training["test_with"] == "none" else "last",
        "checkpoint": training["checkpoint"]
        | {"every_seconds": 0, "every_steps": max(1, settings["steps"] // 2)},
    }
    if "timeout_min" in launcher:
        launcher["timeout_min"] = min(launcher["timeout_min"], JOB_MINUTES)
    content |= {"logger": {"loggers": {}}, "n_jobs": 1, "rehearsal": settings}
    return replace(run, content=content)


def stood_in(node: Any) -> Any:
    """A copy of a config in which stand-ins take the place of what must be fetched.

    They are what ``info.stand_in.target`` says, wherever it stands, and take the same settings.
    """
    if isinstance(node, list):
        return [stood_in(each) for each in node]
    if not isinstance(node, dict):
        return node
    copied = {key: stood_in(value) for key, value in node.items()}
    info = node.get("info")
    if isinstance(info, dict) and "stand_in" in info:
        copied["_target_"] = info["stand_in"]["target"]
    return copied
