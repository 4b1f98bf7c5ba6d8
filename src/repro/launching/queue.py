"""What Slurm says: the jobs in its queue, and where runs stand that jobs of it execute."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable
from enum import StrEnum

from repro.errors import UserError
from repro.records.run import Run, RunRecord
from repro.records.status import Status, count
from repro.records.study import Study

FRESH_SECONDS = 2.0  # how long an answer of squeue is believed


class JobState(StrEnum):
    """What Slurm says about a job."""

    QUEUED = "queued"
    RUNNING = "running"
    GONE = "gone"  # finished, failed or cancelled: Slurm expects nothing more of it
    UNKNOWN = "unknown"  # there is no Slurm here, or it does not answer


def current_record(run: Run) -> RunRecord:
    """A run's record with a status that is true now, whoever executes the run."""
    record = run.record()
    here = record.status is Status.RUNNING and record.host == socket.gethostname()
    if record.status.has_ended or here:
        return record
    job, word = _state_of(run)
    if job is JobState.GONE:
        record = run.record()  # once more: it may just have ended
        if not record.status.has_ended:
            return record.model_copy(update={"status": Status.INTERRUPTED})
    elif job is not JobState.UNKNOWN:
        # Another machine's run may well be running; one of this machine has lost its process.
        is_running = record.status is Status.RUNNING and job is JobState.RUNNING
        status = record.status if is_running else Status.WAITING
        return record.model_copy(update={"status": status, "queue": f"job {run.job}: {word}"})
    return record


def check_ended(study: Study) -> None:
    """Refuses a study of which a run is still to come.

    Raises:
        UserError: there is one.
    """
    if not all(current_record(run).status.has_ended for run in study.runs):
        raise UserError(
            f"{study.folder} is not finished. Finish it first: repro resume {study.folder}"
        )


def is_submitted(run: Run) -> bool:
    """Whether a Slurm job is still going to work on a run, as far as is known."""
    if run.job is None or run.status().has_ended:
        return False
    return _state_of(run)[0] is not JobState.GONE


def jobs_of(runs: Iterable[Run]) -> list[str]:
    """The Slurm jobs and job arrays that still work on some runs."""
    return arrays(run.job for run in runs if is_submitted(run))


def count_statuses(runs: Iterable[Run]) -> dict[Status, int]:
    """How many runs stand where."""
    return count(run.end() or current_record(run).status for run in runs)


def current_job() -> str | None:
    """The number of the Slurm job in which this process was started by submitit, if it was."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def arrays(jobs: Iterable[str | None]) -> list[str]:
    """The job arrays that jobs belong to: thousands of single jobs do not fit into a command."""
    return list(dict.fromkeys(_array_of(job) for job in jobs if job is not None))


_answers: dict[str, tuple[float, dict[str, tuple[JobState, str]] | None]] = {}


def job_state(job: str, since: float) -> tuple[JobState, str]:
    """Where a job stands, and Slurm's own word for it.

    Args:
        job: its number, ``12`` or ``12_3``.
        since: an answer older than this time is no reason to believe that the job is gone.
    """
    array = _array_of(job)
    taken, jobs = _answers.get(array, (0.0, None))
    too_old = time.time() - taken > FRESH_SECONDS
    if too_old or (jobs is not None and job not in jobs and taken <= since):
        jobs = _ask_queue(array)
        _answers[array] = (time.time(), jobs)
    if jobs is None:
        return JobState.UNKNOWN, ""
    return jobs.get(job, (JobState.GONE, ""))


def _state_of(run: Run) -> tuple[JobState, str]:
    """Where a run's Slurm job stands, and Slurm's word for it."""
    job = run.job
    return (JobState.UNKNOWN, "") if job is None else job_state(job, run.job_file.stat().st_mtime)


def _ask_queue(array: str) -> dict[str, tuple[JobState, str]] | None:
    """The jobs of an array that Slurm still expects something of; None if it cannot be asked."""
    answer = ask("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={array}")
    if answer is None:
        return None
    jobs = {}
    for line in answer.splitlines():
        name, word, reason = line.split("|", 2)
        state = JobState.QUEUED if word == "PENDING" else JobState.RUNNING
        jobs[name] = (state, f"{word}, {reason}" if word == "PENDING" else word)
    return jobs


def ask(*command: str) -> str | None:
    """What one of Slurm's commands prints; None if it cannot be asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return done.stdout
    return "" if "Invalid job id" in done.stderr else None  # a job that Slurm has forgotten


def _array_of(job: str) -> str:
    return job.partition("_")[0]
