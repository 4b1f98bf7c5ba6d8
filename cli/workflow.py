"""What `run` and `resume` share: execute, judge, draw, render, and choose the exit code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from repro.engine import progress
from repro.engine.papers import Paper
from repro.engine.runs import Run, Status
from repro.engine.study import Study
from repro.errors import ReproError

from . import render


def run_and_judge(study: Study, quiet: bool, as_json: bool) -> int:
    """Runs what is left of a study and reports it.

    Returns:
        0 if every run ended well (whatever the verdicts), 2 if every failure was the user's
        mistake, 1 if runs failed otherwise, 130 if the user stopped it.
    """
    if not quiet:
        render.study_starts(study)
    interrupted = False
    try:
        with progress.shown(study, render.console, quiet):
            study.run()
    except KeyboardInterrupt:
        interrupted = True
    statuses = [run.status() for run in study.runs]
    if interrupted or any(s in (Status.INTERRUPTED, Status.WAITING) for s in statuses):
        render.message(f"Stopped. Continue with: repro resume {_short(study.folder)}")
        return 130 if interrupted else 1

    verdicts = [] if study.about["is_grid"] or _is_single(study) else study.judge()
    if any(status.is_final for status in statuses):
        try:
            study.draw()
        except ReproError:
            raise
        except Exception as error:  # a picture is not worth losing the verdicts
            render.message(f"The figures could not be drawn: {type(error).__name__}: {error}")
    render.study_result(study, verdicts, as_json)
    return _report_failures(study)


def check_claims(paper: Paper) -> None:
    """Finds mistakes in claims.yaml before hours of training rather than after them."""
    from repro.claims.schema import check_arms, load_claims

    check_arms(load_claims(paper.claims_file), paper.arms)


def continue_run(folder: Path, as_json: bool) -> int:
    """Continues one run in this process."""
    from repro.engine.execute import execute

    run = Run.open(folder.absolute())
    status = execute(run.folder)
    render.run_result(run, as_json)
    if status is Status.FAILED:
        error = run.record()["error"]
        render.message(error["message"])
        return 2 if error["kind"] == "user" else 1
    return 0 if status.is_final else 130


def _report_failures(study: Study) -> int:
    records = [run.record() for run in study.runs]
    failed = [record for record in records if record["status"] == Status.FAILED]
    if not failed:
        return 0
    messages = Counter(record["error"]["message"] for record in failed)
    for message, count in messages.items():
        first = next(r for r in failed if r["error"]["message"] == message)
        times = f" ({count} runs)" if count > 1 else ""
        render.message(f"{first['arm']} seed {first['seed']} failed{times}: {message}")
    if all(record["error"]["kind"] == "user" for record in failed):
        return 2
    render.message(f"Details: log.txt in each run directory under {_short(study.folder)}")
    return 1


def _is_single(study: Study) -> bool:
    return len({run.folder.parent for run in study.runs}) == 1


def _short(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
