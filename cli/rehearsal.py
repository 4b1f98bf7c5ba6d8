"""`repro run --rehearse`: what a study would take, measured on some steps of each arm."""

from __future__ import annotations

from pathlib import Path

from repro.launching import progress
from repro.launching.local import launch, wait_for
from repro.planning import trust
from repro.planning.plan import Plan
from repro.planning.rehearse import rehearsed
from repro.report import full_scale

from . import render, workflow

STEPS = {"gpu": 24, "cpu": 8}  # if nobody says how many


def planned(plan: Plan, steps: int | None, minutes: float) -> Plan:
    """The rehearsal of a study; on a CPU it is shorter."""
    if steps is None:
        import torch

        on_cpu = {run.content["hardware"]["accelerator"] for run in plan.runs} == {"cpu"}
        steps = STEPS["cpu" if on_cpu or not torch.cuda.is_available() else "gpu"]
    return rehearsed(plan, steps, minutes)


def run(plan: Plan, outputs: Path, quiet: bool, as_json: bool) -> int:
    """Rehearses a study and prints what it measured.

    Returns:
        0 if every arm came to its last step, 1 if one did not.
    """
    study = workflow.prepared(plan, outputs)
    with workflow.discarded_if_refused(study), trust.trusted(), study.held():
        with progress.shown(study, render.console, quiet):
            launch(study, study.layers, n_jobs=1)
            wait_for(study.runs)
        arms = full_scale.rows(study)
        if as_json:
            render.emit([arm.plain() for arm in arms])
        else:
            _print(arms, full_scale.whole(study))
            render.message(f"This is no result. It lies in {workflow.short(study.folder)}")
    return int(any(arm.state != full_scale.DONE for arm in arms))


def _print(arms: list[full_scale.Row], whole: list[str]) -> None:
    shown = render.table(*full_scale.COLUMNS)
    for arm in arms:
        shown.add_row(*arm.cells())
    render.console.print(shown)
    for line in whole:
        render.console.print(line, markup=False)
    for arm in arms:
        for problem in arm.problems:
            render.message(f"{arm.arm}: {problem}")
