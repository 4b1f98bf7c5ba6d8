"""Runs of a study as Slurm jobs: what a job does, submitting them, and where they stand.

A layer of a study is one job array, and the next layer's array depends on it, so that everything is
in Slurm's hands once it is submitted: no process of ours has to stay. Whoever looks later learns
from the run directories what the runs did, and from ``squeue`` which jobs are still to be expected.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from submitit.helpers import DelayedSubmission

    from repro.records.run import Run

LAUNCHER = "submitit_slurm"  # the Hydra launcher whose settings describe the jobs
JOBS_FOLDER = "jobs"  # of a study: Slurm's logs and submitit's files
LONGEST_ARRAY = 1000  # Slurm refuses longer arrays unless its administrator allowed them
FRESH_SECONDS = 2.0  # how long an answer of squeue is believed
STOPPED = 143  # the exit code of a job that was told to stop


class Refused(UserError):  # noqa: N818 - what Slurm did, not an error of ours
    """Slurm did not accept the jobs; none was started."""


class JobState(StrEnum):
    """What Slurm says about a job."""

    QUEUED = "queued"
    RUNNING = "running"
    GONE = "gone"  # finished, failed or cancelled: Slurm expects nothing more of it
    UNKNOWN = "unknown"  # there is no Slurm here, or it does not answer


# ------------------------------------------------------------------------------- inside a job


@dataclass(frozen=True)
class RunJob:
    """What each process of a job calls; submitit keeps it in a file until then.

    Slurm sends a signal some time before it takes the nodes away. The run then saves its state and
    stops, and submitit puts the job back into the queue; the same call continues the run.
    """

    folder: Path
    study: Path

    def __call__(self) -> str:
        """Executes or continues the run, and judges the study if this was its last one."""
        from repro.records.run import Run
        from repro.records.study import Study
        from repro.training.execute import execute_here, is_main_process

        with _polite_warning() as warning:
            try:
                status = execute_here(Run.open(self.folder))
            except KeyboardInterrupt:
                if warning.received:
                    warning.requeue()
                sys.exit(STOPPED)
        study = Study.open(self.study)
        if is_main_process() and study.is_judged and all(run.has_ended() for run in study.runs):
            study.judge()
        return str(status)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts into the queue again: the same, because run directories resume."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def current_job() -> str | None:
    """The number of the Slurm job in which this process was started by submitit, if it was."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


class _Warning:
    """Slurm's warning that time is up, turned into the polite SIGINT that a run understands."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.submitit: Any = signal.getsignal(number)
        self.received = False

    def receive(self, *_: Any) -> None:
        if not self.received:  # Slurm may repeat itself; a second SIGINT would not be polite
            self.received = True
            os.kill(os.getpid(), signal.SIGINT)

    def requeue(self) -> None:
        """Lets submitit's own handler put the job back into the queue and exit."""
        if callable(self.submitit):
            self.submitit(self.number, None)


@contextmanager
def _polite_warning() -> Iterator[_Warning]:
    import submitit

    warning = _Warning(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])
    signal.signal(warning.number, warning.receive)
    yield warning


# --------------------------------------------------------------------------------- submitting


def check_available() -> None:
    """Finds out whether jobs can be submitted from this machine.

    Raises:
        UserError: Slurm's commands are missing.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "There is no Slurm on this machine (sbatch is missing). Run this where jobs are "
            "submitted, or choose other hardware: hardware=cpu, hardware=gpu, hardware=ddp."
        )


def submit(layers: Sequence[Sequence[Run]], study: Path, settings: DictConfig) -> None:
    """Submits layers of runs, each after the jobs of all earlier layers have ended.

    Layers list every run that is to be done; those whose job is still to come are left alone.

    Args:
        layers: runs, parents before children.
        study: the study's folder.
        settings: the config of Hydra's ``submitit_slurm`` launcher.

    Raises:
        Refused: Slurm does not accept the jobs; none of these is left in its queue then.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    check_available()
    submitted: list[str] = []
    earlier: list[str | None] = []
    try:
        for layer in layers:
            todo = [run for run in layer if not run.is_submitted()]
            after = arrays(earlier)
            for start in range(0, len(todo), LONGEST_ARRAY):
                part = todo[start : start + LONGEST_ARRAY]
                submitted += _submit_array(part, study, settings, after)
            earlier += [run.job for run in layer]
    except BaseException as error:
        cancel(submitted)
        if isinstance(error, FailedJobError | FailedSubmissionError):
            raise _explain_refusal(str(error)) from error
        raise


def cancel(jobs: Sequence[str | None]) -> None:
    """Takes jobs and their arrays out of the queue, as far as they are in it."""
    if jobs:
        subprocess.run(["scancel", "--quiet", *arrays(jobs)], check=False)


def arrays(jobs: Iterable[str | None]) -> list[str]:
    """The job arrays that jobs belong to: thousands of single jobs do not fit into a command."""
    return list(dict.fromkeys(_array_of(job) for job in jobs if job is not None))


def _submit_array(
    runs: Sequence[Run], study: Path, settings: DictConfig, after: Sequence[str]
) -> list[str]:
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(settings, resolve=True)
    for key in ("_target_", "submitit_folder"):
        values.pop(key)
    timeouts = values.pop("max_num_timeout")
    values["stderr_to_stdout"] = True
    # One process that fails takes the others with it, instead of leaving them to wait.
    values["srun_args"] = ["--kill-on-bad-exit=1"]
    # Parents that failed count as done: their children say so themselves, the others run.
    values["dependency"] = ":".join(["afterany", *after]) if after else None
    executor = submitit.AutoExecutor(
        study / JOBS_FOLDER, cluster="slurm", slurm_max_num_timeout=timeouts
    )
    shared = {field.name for field in fields(BaseQueueConf)}  # the rest is Slurm's own
    executor.update_parameters(
        **{
            key if key in shared else f"slurm_{key}": value
            for key, value in values.items()
            if value is not None
        }
    )
    for run in runs:
        run.await_job()
    with executor.batch():
        jobs = [executor.submit(RunJob(run.folder, study)) for run in runs]
    for run, job in zip(runs, jobs, strict=True):
        run.note_job(job.job_id, job.paths.stdout)
    return [job.job_id for job in jobs]


def _explain_refusal(output: str) -> Refused:
    """Puts sbatch's complaint into a line, with what would be right where that is known."""
    complaints = re.findall(r"^sbatch: (?:error: )?(.*)", output, re.MULTILINE)
    text = "; ".join(dict.fromkeys(complaints)) or "sbatch failed without a word"
    hint = " Its settings are hardware.launcher.…: partition, account, timeout_min, mem_gb, …"
    unknown = re.search(r"invalid partition specified: (\S+)", text)
    if unknown:
        known = _partitions()
        hint = (
            f"{did_you_mean(unknown[1], known)} Partitions here: {', '.join(known) or 'none'}. "
            "Choose one with hardware.launcher.partition=…"
        )
    return Refused(f"Slurm refused the jobs: {text}.{hint}")


def _partitions() -> list[str]:
    return (_ask("sinfo", "--noheader", "--format=%R") or "").split()


# ----------------------------------------------------------------------------------- watching

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


def _ask_queue(array: str) -> dict[str, tuple[JobState, str]] | None:
    """The jobs of an array that Slurm still expects something of; None if it cannot be asked."""
    answer = _ask("squeue", "--noheader", "--array", "--format=%i|%T|%r", f"--jobs={array}")
    if answer is None:
        return None
    jobs = {}
    for line in answer.splitlines():
        name, word, reason = line.split("|", 2)
        state = JobState.QUEUED if word == "PENDING" else JobState.RUNNING
        jobs[name] = (state, f"{word}, {reason}" if word == "PENDING" else word)
    return jobs


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return done.stdout
    return "" if "Invalid job id" in done.stderr else None  # a job that Slurm has forgotten


def _array_of(job: str) -> str:
    return job.partition("_")[0]
