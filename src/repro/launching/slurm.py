"""Runs of a study as Slurm jobs: submitting them.

A layer of a study is one job array, and the next layer's array depends on it, so that everything is
in Slurm's hands once it is submitted: no process of ours has to stay. Whoever looks later learns
from the run directories what the runs did, and from ``squeue`` which jobs are still to be expected.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from repro.errors import UserError, did_you_mean
from repro.launching import queue
from repro.launching.jobs import RunJob
from repro.records import files
from repro.records.run import Run
from repro.records.study import Study

if TYPE_CHECKING:
    from omegaconf import DictConfig

LAUNCHER = "submitit_slurm"  # the Hydra launcher whose settings describe the jobs
LONGEST_ARRAY = 1000  # Slurm refuses longer arrays unless its administrator allowed them


class Refused(UserError):  # noqa: N818 - what Slurm did, not an error of ours
    """Slurm did not accept the jobs; none was started."""


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


def check_settings(settings: DictConfig) -> None:
    """Refuses settings of a job that submitit does not know.

    Args:
        settings: the config of Hydra's ``submitit_slurm`` launcher.

    Raises:
        UserError: there is one.
    """
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    known = {field.name for field in fields(SlurmQueueConf)}
    for key in map(str, settings):
        if key not in known:
            raise UserError(f"There is no hardware.launcher.{key}.{did_you_mean(key, known)}")


def submit(
    runs: Sequence[Run],
    study: Study,
    settings: DictConfig,
    after: Sequence[str],
    conclude: Callable[[Study], None],
) -> list[str]:
    """Submits runs of one layer; those whose job is still to come are left alone.

    Args:
        runs: all that are to be done.
        study: whose they are.
        settings: the config of Hydra's ``submitit_slurm`` launcher.
        after: job arrays that must have ended before.
        conclude: what the last job of the study calls.

    Returns:
        The new jobs.

    Raises:
        Refused: Slurm does not accept the jobs; none of these is left in its queue then.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    check_available()
    todo = [run for run in runs if not queue.is_submitted(run)]
    submitted: list[str] = []
    try:
        for start in range(0, len(todo), LONGEST_ARRAY):
            part = todo[start : start + LONGEST_ARRAY]
            submitted += _submit_array(part, study, settings, after, conclude)
    except BaseException as error:
        cancel(submitted)
        if isinstance(error, FailedJobError | FailedSubmissionError):
            raise Refused(_explain_refusal(str(error))) from error
        raise
    return submitted


def cancel(jobs: Sequence[str | None]) -> None:
    """Takes jobs and their arrays out of the queue, as far as they are in it."""
    if jobs:
        subprocess.run(["scancel", "--quiet", *queue.arrays(jobs)], check=False)


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hides meanwhile what Slurm told this process of its own job.

    A job inherits the environment that it was submitted from. One that a job submits would take
    itself for its parent where its own variables do not replace the parent's: those of arrays.
    """
    names = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    own = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(own)


def _submit_array(
    runs: Sequence[Run],
    study: Study,
    settings: DictConfig,
    after: Sequence[str],
    conclude: Callable[[Study], None],
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
    files.make_folder(study.jobs_folder)
    executor = submitit.AutoExecutor(
        study.jobs_folder, cluster="slurm", slurm_max_num_timeout=timeouts
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
    with _outside_of_a_job(), executor.batch():
        jobs = [executor.submit(RunJob(run.folder, study.folder, conclude)) for run in runs]
    for run, job in zip(runs, jobs, strict=True):
        run.note_job(job.job_id, job.paths.stdout)
    return [job.job_id for job in jobs]


def _explain_refusal(output: str) -> str:
    """Puts sbatch's complaint into a line, with what would be right where that is known."""
    complaints = re.findall(r"^sbatch: (?:error: )?(.*)", output, re.MULTILINE)
    text = "; ".join(dict.fromkeys(complaints)) or "sbatch failed without a word"
    hint = " Its settings are hardware.launcher.…: partition, account, timeout_min, mem_gb, …"
    unknown = re.search(r"invalid partition specified: (\S+)", text)
    if unknown:
        known = (queue.ask("sinfo", "--noheader", "--format=%R") or "").split()
        hint = (
            f"{did_you_mean(unknown[1], known)} Partitions here: {', '.join(known) or 'none'}. "
            "Choose one with hardware.launcher.partition=…"
        )
    return f"Slurm refused the jobs: {text}.{hint}"
