"""A run directory: everything needed to execute, resume and judge one run.

config.yaml     the composed config (interpolations resolved, but for those of ``module``)
overrides.yaml  the overrides that led to it
run.json        status, progress, timings, versions, fingerprints, hardware, errors
job.json        the Slurm job that executes it, where there is one
metrics.csv     series
summary.json    final scalars: all that claims read
checkpoints/    last.ckpt, best.ckpt
artifacts/      pictures and tables
log.txt         what was said along the way
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import UserError
from repro.launching import slurm
from repro.launching.slurm import JobState
from repro.records import files

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_PARTS = ("seed", "training", "hardware", "logger", "dataset", "module")


class Status(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"  # a loss became infinite or not a number: a result, not a failure
    PRUNED = "pruned"  # a search stopped it, because others are better
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        """Whether resuming the study leaves this run alone."""
        return self in (Status.FINISHED, Status.DIVERGED, Status.PRUNED)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes of the run unless somebody resumes it on purpose."""
        return self.is_final or self is Status.FAILED


@dataclass(frozen=True)
class Run:
    """One run directory."""

    folder: Path

    @classmethod
    def create(
        cls, folder: Path, content: dict[str, Any], overrides: list[str], record: dict[str, Any]
    ) -> Run:
        """Prepares a run directory that can be executed at once, or by another process later.

        Args:
            folder: the run directory.
            content: of the composed config.
            overrides: what led to it.
            record: the first entries of run.json.
        """
        files.make_folder(folder)
        files.write_text(folder / "config.yaml", _as_yaml(content))
        files.write_text(folder / "overrides.yaml", _as_yaml(overrides))
        run = cls(folder)
        files.write_json(run.record_file, {**record, "status": Status.WAITING, "created": now()})
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Opens an existing run directory.

        Raises:
            UserError: ``folder`` is not one.
        """
        if not (folder / "run.json").is_file():
            raise UserError(f"{folder} is not a run directory (it has no run.json).")
        return cls(folder)

    @property
    def record_file(self) -> Path:
        """The run's manifest."""
        return self.folder / "run.json"

    @property
    def last_checkpoint(self) -> Path:
        """The newest state of training."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The weights with the best validation metric."""
        return self.folder / "checkpoints" / "best.ckpt"

    def record(self) -> dict[str, Any]:
        """The content of run.json, with a status that is true now."""
        record: dict[str, Any] = files.read_json(self.record_file)
        running = record["status"] == Status.RUNNING
        if Status(record["status"]).has_ended or (running and self._is_executed_here(record)):
            return record
        # The lock of another machine may not be visible here: then its word must do.
        runs_elsewhere = running and record.get("host") != socket.gethostname()
        job, word = self.job_state()
        if job is JobState.GONE:
            record = files.read_json(self.record_file)  # once more: it may just have ended
            if not Status(record["status"]).has_ended:
                record["status"] = Status.INTERRUPTED
        elif job is not JobState.UNKNOWN:
            record["queue"] = f"job {self.job}: {word}"
            if not (runs_elsewhere and job is JobState.RUNNING):
                record["status"] = Status.WAITING
        elif running and not runs_elsewhere:
            record["status"] = Status.INTERRUPTED
        return record

    def status(self) -> Status:
        """Where the run stands now."""
        return Status(self.record()["status"])

    def has_ended(self) -> bool:
        """Whether the run came to an end; costs less than `status`, which asks Slurm."""
        return Status(files.read_json(self.record_file)["status"]).has_ended

    # -- The Slurm job that executes the run, where there is one. It has a file of its own, because
    # -- run.json belongs to whoever executes the run.

    @property
    def job_file(self) -> Path:
        """Names the run's Slurm job and its log."""
        return self.folder / "job.json"

    @property
    def job(self) -> str | None:
        """The number of the run's Slurm job."""
        return files.read_json(self.job_file)["job"] if self.job_file.is_file() else None

    @property
    def job_log(self) -> Path | None:
        """What the run's Slurm job printed."""
        return Path(files.read_json(self.job_file)["log"]) if self.job_file.is_file() else None

    def job_state(self) -> tuple[JobState, str]:
        """Where the run's Slurm job stands, and Slurm's word for it."""
        job = self.job
        if job is None:
            return JobState.UNKNOWN, ""
        return slurm.job_state(job, self.job_file.stat().st_mtime)

    def is_submitted(self) -> bool:
        """Whether a Slurm job is still going to work on this run, as far as is known."""
        return self.job is not None and not (
            self.has_ended() or self.job_state()[0] is JobState.GONE
        )

    def await_job(self) -> None:
        """Makes the run ready to be submitted."""
        self.forget_job()
        self.update(status=Status.WAITING, error=None)

    def note_job(self, job: str, log: Path) -> None:
        """Notes the Slurm job that will execute the run."""
        files.write_json(self.job_file, {"job": job, "log": str(log)})

    def forget_job(self) -> None:
        """Notes that no Slurm job is going to execute the run."""
        self.job_file.unlink(missing_ok=True)

    def update(self, **changes: Any) -> None:
        """Merges changes into run.json."""
        files.write_json(self.record_file, {**files.read_json(self.record_file), **changes})

    def config(self) -> DictConfig:
        """The composed config.

        Raises:
            UserError: config.yaml is missing or damaged.
        """
        from omegaconf import OmegaConf

        file = self.folder / "config.yaml"
        try:
            config = OmegaConf.load(file)
            OmegaConf.resolve(config)
            missing = [key for key in CONFIG_PARTS if key not in config]
        except Exception as error:
            raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
        if missing or not OmegaConf.is_dict(config):
            raise UserError(f"{file} is not the config of a run: it has no {', '.join(missing)}.")
        return config  # type: ignore[return-value]

    def summary(self) -> dict[str, float]:
        """The final scalars, empty while there are none."""
        file = self.folder / "summary.json"
        return files.read_json(file) if file.is_file() else {}

    def parent(self) -> Run | None:
        """The run whose checkpoint this one starts from."""
        relative = files.read_json(self.record_file).get("parent")
        return Run.open((self.folder / relative).resolve()) if relative else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Marks the run as being executed by this process, for as long as the process lives."""
        with files.exclusive_lock(self.folder / ".lock"):
            files.remove_leftovers(self.folder)
            yield

    def _is_executed_here(self, record: dict[str, Any]) -> bool:
        is_here = record.get("host") == socket.gethostname()
        return is_here and files.is_locked(self.folder / ".lock")


def _as_yaml(content: dict[str, Any] | list[str]) -> str:
    """What `OmegaConf.to_yaml` writes, without making a config of it first, which takes longer."""
    import yaml
    from omegaconf._utils import get_omega_conf_dumper

    text: str = yaml.dump(
        content, Dumper=get_omega_conf_dumper(), allow_unicode=True, sort_keys=False
    )
    return text


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_identity() -> dict[str, Any]:
    """Who executes: host and process number."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
