"""Writing a plan down: the study's folder, and every run directory in it."""

from __future__ import annotations

from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.planning import trust
from repro.planning.plan import Plan
from repro.records import files, names, provenance
from repro.records.run import Code, Run, RunRecord
from repro.records.status import Status
from repro.records.study import Study, StudyRecord
from repro.records.typed import now, write_record


def create_study(plan: Plan, outputs: Path, search: dict[str, Any] | None = None) -> Study:
    """Prepares the study's folder and every run directory in it.

    Args:
        plan: the runs.
        outputs: where studies are.
        search: what is searched, if the study is a search: its runs are added as they are drawn.

    A `UserError` says so if ``outputs`` cannot be written to.
    """
    folder = outputs / plan.paper.slug
    if plan.rehearsal is not None:
        folder = folder / names.REHEARSALS
    study = Study(_new_folder(folder / plan.scale))
    try:
        _prepare(study, plan, search)
    except BaseException:  # a folder without study.json would be found by nobody
        study.discard()
        raise
    return study


def _prepare(study: Study, plan: Plan, search: dict[str, Any] | None) -> None:
    _prepare_runs(plan, study.folder)
    record: dict[str, Any] = {
        "paper": plan.paper.slug,
        "scale": plan.scale,
        "typed": plan.typed,
        "is_grid": plan.is_grid or search is not None,
        "notes": plan.notes,
        "twins": plan.twins,
        "created": now(),
        "code": provenance.code_fingerprint()
        | {"paper_sha256": provenance.paper_fingerprint(plan.paper)},
        "hydra": plan.hydra_overrides,
        "layers": _folders(plan),
    }
    if plan.looks is not None:
        record["looks"] = plan.looks
    if search is not None:
        record["search"] = search
    if plan.rehearsal is not None:
        record["rehearsal"] = plan.rehearsal
    # Written last: a folder without study.json was never completely prepared.
    write_record(study.record_file, StudyRecord(**record))


def add_runs(study: Study, plan: Plan) -> list[list[Run]]:
    """Adds the runs of a plan to a study; those that it has already stay as they are.

    Returns:
        The runs of ``plan``, parents before children.
    """
    _prepare_runs(plan, study.folder)
    added = _folders(plan)
    none: list[str] = []
    both = zip_longest(study.about.layers, added, fillvalue=none)
    study.update(layers=[list(dict.fromkeys([*old, *new])) for old, new in both])
    return [[Run(study.folder / path) for path in layer] for layer in added]


def _folders(plan: Plan) -> list[list[str]]:
    return [[run.folder for run in layer] for layer in plan.layers()]


def _prepare_runs(plan: Plan, folder: Path) -> None:
    """Prepares the run directories of a plan that are not there yet."""
    code = Code(**provenance.code_fingerprint())
    folders = {(run.arm, run.seed, repr(run.point)): run.folder for run in plan.runs}
    for run in (run for layer in plan.layers() for run in layer):
        if Run(folder / run.folder).record_file.is_file():
            continue
        parent = folders.get((run.parent or "", run.seed, repr(run.point)))
        record = RunRecord(
            paper=plan.paper.slug,
            scale=plan.scale,
            arm=run.arm,
            seed=run.seed,
            point=dict(run.point),
            parent=None if parent is None else "../" * (run.folder.count("/") + 1) + parent,
            code=code,
            status=Status.WAITING,
            created=now(),
            callback=None if plan.rehearsal is None else trust.REHEARSING,
        )
        Run.create(folder / run.folder, run.content, run.overrides, record)


def _new_folder(parent: Path) -> Path:
    """Creates a folder named for the present second; a number is added if it is taken.

    Raises:
        UserError: too many are taken.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        folder = (parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")).absolute()
        try:
            files.make_folder(folder, exist_ok=False)
            return folder
        except FileExistsError:
            continue
    raise UserError(f"{parent} holds too many studies of this very second.")
