"""What `run` and `resume` share: execute, judge, draw, render, and choose the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from repro.claims.studies import judge_study
from repro.errors import INTERRUPTED, ReproError, UserError
from repro.launching import progress
from repro.launching.growing import extend
from repro.launching.local import run_study, wait_for
from repro.launching.queue import current_record, jobs_of
from repro.launching.slurm import Refused
from repro.planning import trust
from repro.planning.prepare import create_study
from repro.records.run import Run
from repro.records.status import Status
from repro.records.study import Study, find_studies
from repro.report.draw import draw_study

from . import render

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from repro.claims.verdicts import ClaimVerdict
    from repro.planning.plan import Plan
    from repro.search.request import Request

SHOWN = 3  # logs of failed or lost jobs
LAST_LINES = 5


def prepared(plan: Plan, outputs: Path) -> Study:
    """Prepares a study.

    Raises:
        KeyboardInterrupt: the user stopped it, and nothing of it is left.
    """
    try:
        return create_study(plan, outputs)
    except KeyboardInterrupt:
        render.message("Nothing was started.")
        raise


def submit(study: Study, as_json: bool) -> int:
    """Leaves what is left of a study to Slurm's jobs, and says how to come back to it."""
    with study.held():
        run_study(study, wait=False)
    render.submitted(study, as_json)
    return 0


@contextmanager
def discarded_if_refused(study: Study) -> Iterator[None]:
    """Leaves nothing of a new study if Slurm refuses its jobs and no run has begun.

    Raises:
        Refused: Slurm refused them.
    """
    try:
        yield
    except Refused:
        if not any(run.record().attempts for run in study.runs):
            study.discard()
        raise


@contextmanager
def confined(study: Study) -> Iterator[None]:
    """Meanwhile a study writes nothing outside of its folder, unless it is the user's own."""
    if trust.is_trusted():
        yield
        return
    with study.confined():
        yield


def latest_study(outputs: Path) -> Path:
    """The folder of the youngest study.

    Raises:
        UserError: there is none.
    """
    studies = find_studies(outputs)
    if not studies:
        raise UserError(f"There is no study in {outputs}. Start one: repro run SLUG.")
    return studies[-1].folder


def run_and_judge(study: Study, quiet: bool, as_json: bool, verbose: bool = False) -> int:
    """Runs what is left of a study and reports it.

    Returns:
        0 if every run ended well (whatever the verdicts), 2 if every failure was the user's
        mistake, 1 if runs failed otherwise, 130 if the user stopped it.

    A `ReproError` says so if a figure is declared wrongly or cannot be written.
    """
    with study.held():
        stopped = execute(study, quiet)
        if stopped is not None:
            return stopped
        with render.sign_of_life("judging and drawing", quiet):
            verdicts = judge_study(study) if study.is_judged else []
            if any(current_record(run).status.is_final for run in study.runs):
                _draw(study)
        _publish(study, verdicts)
        render.study_result(study, verdicts, as_json, verbose)
        return report_failures(study)


def _draw(study: Study) -> None:
    """Draws the figures of a study.

    Raises:
        ReproError: one is declared wrongly or cannot be written.
    """
    try:
        draw_study(study)
    except ReproError:
        raise
    except Exception as error:  # a picture is not worth losing the verdicts
        render.message(f"The figures could not be drawn: {type(error).__name__}: {error}")


def execute(study: Study, quiet: bool) -> int | None:
    """Runs what is left of a study that this process holds, and what its open claims need more.

    Returns:
        None if that is done; otherwise the exit code: 130 if the user stopped it, 1 if something
        else did.
    """
    if not quiet:
        render.study_starts(study)
    stopped = _execute(study, quiet)
    while stopped is None and (look := extend(study)) is not None:
        if not quiet:
            render.look(look)
        stopped = _execute(study, quiet)
    return stopped


def _execute(study: Study, quiet: bool) -> int | None:
    interrupted = False
    try:
        with progress.shown(study, render.console, quiet):
            run_study(study, wait=False)
            if not quiet and jobs_of(study.runs):
                render.submitted(study, as_json=False)
            wait_for(study.runs)
    except KeyboardInterrupt:
        if jobs_of(study.runs):
            render.message(f"The jobs go on. Come back: repro resume {short(study.folder)}")
            return INTERRUPTED
        interrupted = True
        if not study.record_file.is_file():
            _say_stopped(study)
            return INTERRUPTED
    statuses = {current_record(run).status for run in study.runs}
    if not interrupted and statuses.isdisjoint((Status.INTERRUPTED, Status.WAITING)):
        return None
    report_failures(study)
    _report_lost_jobs(study)
    _say_stopped(study)
    return INTERRUPTED if interrupted else 1


def _say_stopped(study: Study) -> None:
    """Says that a study was stopped, and how to continue it where that is possible."""
    if not study.record_file.is_file():
        render.message(f"Stopped. {short(study.folder)} was deleted meanwhile.")
        return
    render.message(f"Stopped. Continue with: repro resume {short(study.folder)}")
    stopped = [run for run in study.runs if current_record(run).status is Status.INTERRUPTED]
    early = [run for run in stopped if not run.last_checkpoint.is_file()]
    if early:
        have, start = ("run has", "starts") if len(early) == 1 else ("runs have", "start")
        render.message(f"{len(early)} {have} no checkpoint yet and {start} anew.")


def start_search(request: Request, plan: Plan, outputs: Path, quiet: bool, as_json: bool) -> int:
    """Starts a search, or continues the one that the same command began; see `search`."""
    from repro.launching import local, needs
    from repro.search import loop

    needs.check(plan)
    local.check(plan, detach=False)
    study = loop.find(request, outputs)
    if study is not None:
        with confined(study):
            return search(study, quiet, as_json)
    with trust.trusted():
        return search(loop.create(request, plan, outputs), quiet, as_json)


def search(study: Study, quiet: bool, as_json: bool) -> int:
    """Runs what is left of a search and reports it.

    Returns:
        0 if all its trials are done, 1 if some are left, 130 if the user stopped it.
    """
    from repro.search import loop, results
    from repro.search.request import request_of

    request = request_of(study)

    def announce(trial: FrozenTrial) -> None:
        if not quiet:
            render.trial(trial, request)

    if not quiet:
        render.search_starts(study, request)
    try:
        is_done = loop.run(study, announce)
    except KeyboardInterrupt:
        _say_stopped(study)
        return INTERRUPTED
    if not is_done:
        _say_stopped(study)
        return 1
    result = results.conclude(study)
    _publish(study, [])
    render.search_result(study, result, as_json)
    return 0


def check_claims(plan: Plan) -> None:
    """Finds mistakes in claims and declared figures before hours of training, not after them.

    A `UserError` says so if a claim names an unknown arm, or a claim or the paper's report reads a
    metric that none of the arms in question logs.
    """
    from repro.claims.file import check_arms, load_claims
    from repro.report.figures import read_declared
    from repro.training.metrics import check_declared, declared

    paper, claims = plan.paper, load_claims(plan.paper.claims_file)
    check_arms(claims, paper.arms)
    read_declared(paper)
    logged: dict[str, dict[str, str]] = {}
    for run in plan.runs:
        if run.arm not in logged:
            logged[run.arm] = declared(run.config)
    for claim in claims.claims:
        for check in claim.checks_at(plan.scale):
            check_declared(
                check.metric_names(), check.arm_names(), logged, f"claims.yaml, claim {claim.id}"
            )
    check_declared(paper.report, paper.arms, logged, f"{paper.config_file.name}, report")


def continue_run(folder: Path, as_json: bool) -> int:
    """Continues one run in this process.

    Raises:
        UserError: the run's study is being executed.
    """
    from repro.training.execute import execute

    run = Run.open(folder.absolute())
    study = Study.above(run.folder)
    if study is not None and study.executor is not None:
        raise UserError(f"{study.folder} is being executed by {study.executor}.")
    status = execute(run.folder)
    render.run_result(run, as_json)
    if status is Status.FAILED:
        error = run.record().error
        assert error is not None
        render.message(error.message)
        return 2 if error.kind == "user" else 1
    return 0 if status.is_final else INTERRUPTED


def _publish(study: Study, verdicts: Sequence[ClaimVerdict]) -> None:
    """Sends verdicts and figures to the study's trackers, if it has any."""
    if not study.runs[0].config().logger.loggers:
        return
    from repro.report.tables import verdicts_markdown
    from repro.training import loggers

    texts = {"verdicts": "\n".join(verdicts_markdown(verdicts))} if verdicts else {}
    try:
        loggers.publish(study, texts)
    except Exception as error:  # a tracker is not worth losing the verdicts
        render.message(f"Not sent to the trackers: {type(error).__name__}: {error}")


def report_failures(study: Study) -> int:
    """Says which runs failed; returns the exit code."""
    records = [run.record() for run in study.runs]
    failed = [(record, record.error) for record in records if record.error is not None]
    if not failed:
        return 0
    messages = Counter(error.message for _, error in failed)
    for message, count in messages.items():
        first = next(record for record, error in failed if error.message == message)
        times = f" ({count} runs)" if count > 1 else ""
        render.message(f"{first.arm} seed {first.seed} failed{times}: {message}")
    if all(error.kind == "user" for _, error in failed):
        return 2
    of_jobs = [run for run in study.runs if run.job and run.status() is Status.FAILED]
    for run in of_jobs[:SHOWN]:
        _show_end(run.log_file)
    render.message(f"Details: log.txt in each run directory under {short(study.folder)}")
    return 1


def _report_lost_jobs(study: Study) -> None:
    """Says which Slurm jobs were killed or cancelled, and what they last printed."""
    lost = [
        run for run in study.runs if run.job and current_record(run).status is Status.INTERRUPTED
    ]
    for run in lost[:SHOWN]:
        record = run.record()
        render.message(f"job {run.job} ({record.arm} seed {record.seed}) is gone.")
        if run.job_log is not None:
            _show_end(run.job_log)
    if len(lost) > SHOWN:
        render.message(f"So are {len(lost) - SHOWN} more jobs.")


def _show_end(log: Path) -> None:
    """Prints where a log is and its last lines."""
    if not log.is_file():
        render.message(f"It never started: there is no {short(log)}.")
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    render.message("\n    ".join([f"The end of {short(log)}:", *lines]))


def short(folder: Path) -> Path:
    """A folder as it is reached from the current one, if it is below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
