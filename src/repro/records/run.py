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

import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from repro.errors import UserError, first_line
from repro.records import files, names
from repro.records.series import read_series
from repro.records.status import Status
from repro.records.typed import Moment, Record, read_record, update_record, write_record

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_PARTS = ("seed", "training", "hardware", "logger", "dataset", "module")


class Code(Record):
    """Which sources ran."""

    sha256: str = ""  # the first 16 digits
    commit: str | None = None  # "+changes" if there were some beside it
    paper_sha256: str | None = None  # of what is the paper's own; runs do not say it


class Failure(Record):
    """Why a run failed."""

    kind: str = "run"  # or user, whose mistake it was
    message: str = ""
    traceback: str = ""


class Live(Record):
    """What a run that is under way last said of its training."""

    steps_per_second: float = 0.0
    seconds_left: float | None = None
    measures: dict[str, float] = Field(default_factory=dict)  # the loss, and what it selects by


class RunRecord(Record):
    """The content of run.json, of which a run comes to know more and more."""

    paper: str = ""
    scale: str = ""
    arm: str
    seed: int
    point: dict[str, Any] = Field(default_factory=dict)  # of a grid
    checksums: dict[str, str] = Field(default_factory=dict)  # by file: what others read of it
    parent: str | None = None  # the run whose checkpoint it starts from, seen from this one
    code: Code = Code()
    status: Status
    created: Moment | None = None
    trial: int | None = None  # of a search
    callback: str | None = None  # the class of a Lightning callback that is made from the run
    started: Moment | None = None  # the latest attempt
    error: Failure | None = None
    attempts: int = 0
    host: str | None = None
    pid: int | None = None
    mlflow_run: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    progress: float = 0.0  # from 0 to 1
    live: Live | None = None  # while it runs
    reason: str = ""  # of a divergence
    data: dict[str, Any] | None = None  # fingerprint
    ended: Moment | None = None
    seconds: float | None = None  # all attempts
    peak_memory_mb: float | None = None
    queue: str = ""  # what Slurm says of its job; known only while somebody asks

    @property
    def group(self) -> str:
        """Arm and grid point: what runs that differ only in their seed have in common."""
        return " ".join([self.arm, *(f"{key}={value}" for key, value in self.point.items())])

    @property
    def trouble(self) -> str:
        """Why the run failed or diverged, or an empty string."""
        return self.error.message if self.error else self.reason


class Job(Record):
    """The content of job.json."""

    job: str = Field(pattern=r"^[0-9]+(_[0-9]+)?$")  # it becomes part of job scripts
    log: Path


class MeasuredRun(RunRecord):
    """What run.json and summary.json say together."""

    folder: Path
    metrics: dict[str, float]


_METRICS = TypeAdapter(dict[str, int | float])


@dataclass(frozen=True)
class Run:
    """One run directory."""

    folder: Path

    @classmethod
    def create(
        cls, folder: Path, content: dict[str, Any], overrides: list[str], record: RunRecord
    ) -> Run:
        """Prepares a run directory that can be executed at once, or by another process later.

        Args:
            folder: the run directory.
            content: of the composed config.
            overrides: what led to it.
            record: the first entries of run.json.
        """
        files.make_folder(folder)
        run = cls(folder)
        config = _as_yaml(content)
        # A power failure may damage them: the checksum in run.json would tell.
        files.write_text(run.config_file, config, durable=False)
        files.write_text(folder / names.OVERRIDES, _as_yaml(overrides), durable=False)
        sums = {run.config_file.name: files.checksum(config.encode())}
        write_record(run.record_file, record.model_copy(update={"checksums": sums}))
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Opens an existing run directory.

        Raises:
            UserError: ``folder`` is not one.
        """
        if not (folder / names.RUN_RECORD).is_file():
            raise UserError(f"{folder} is not a run directory (it has no {names.RUN_RECORD}).")
        return cls(folder)

    @property
    def record_file(self) -> Path:
        """The run's manifest."""
        return self.folder / names.RUN_RECORD

    @property
    def config_file(self) -> Path:
        """The composed config."""
        return self.folder / names.RUN_CONFIG

    @property
    def series_file(self) -> Path:
        """The metrics by step; see `repro.records.series`."""
        return self.folder / names.SERIES

    @property
    def summary_file(self) -> Path:
        """The final metrics."""
        return self.folder / names.SUMMARY

    @property
    def log_file(self) -> Path:
        """What was said along the way."""
        return self.folder / names.LOG

    @property
    def artifacts_folder(self) -> Path:
        """Pictures and tables."""
        return self.folder / names.ARTIFACTS

    @property
    def checkpoints_folder(self) -> Path:
        """The states of training."""
        return self.folder / names.CHECKPOINTS

    @property
    def last_checkpoint(self) -> Path:
        """The newest state of training."""
        return self.checkpoints_folder / names.LAST_CHECKPOINT

    @property
    def previous_checkpoint(self) -> Path:
        """The state of training before the newest, for the case that the newest is damaged."""
        return self.checkpoints_folder / names.PREVIOUS_CHECKPOINT

    @property
    def best_checkpoint(self) -> Path:
        """The weights with the best validation metric."""
        return self.checkpoints_folder / names.BEST_CHECKPOINT

    def record(self) -> RunRecord:
        """The content of run.json; a run whose process on this machine is gone is interrupted.

        What Slurm knows beyond that: `repro.launching.queue.current_record`.

        A `UserError` says so if run.json cannot be read.
        """
        record = read_record(RunRecord, self.record_file)
        if self._is_lost(record):
            record = read_record(RunRecord, self.record_file)  # it may just have ended
            if self._is_lost(record):
                return record.model_copy(update={"status": Status.INTERRUPTED})
        return record

    def status(self) -> Status:
        """Where the run stands, as `record` says."""
        return self.record().status

    def end(self) -> Status | None:
        """How the run ended, if it did: ten times faster than `status`, for thousands of runs."""
        try:
            with open(f"{self.folder}/{names.RUN_RECORD}", "rb") as file:
                status = Status(json.load(file)["status"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return status if status.has_ended else None

    def update(self, **changes: Any) -> None:
        """Merges changes into run.json.

        A `TypeError` says so if a `RunRecord` has no such key.
        """
        update_record(RunRecord, self.record_file, changes)

    # -- The Slurm job that executes the run, where there is one. It has a file of its own, because
    # -- run.json belongs to whoever executes the run.

    @property
    def job_file(self) -> Path:
        """Names the run's Slurm job and its log."""
        return self.folder / names.JOB

    @property
    def job(self) -> str | None:
        """The number of the run's Slurm job.

        A `UserError` says so if job.json cannot be read.
        """
        return read_record(Job, self.job_file).job if self.job_file.is_file() else None

    @property
    def job_log(self) -> Path | None:
        """What the run's Slurm job printed."""
        return read_record(Job, self.job_file).log if self.job_file.is_file() else None

    def await_job(self) -> None:
        """Makes the run ready to be submitted."""
        self.forget_job()
        self.update(status=Status.WAITING, error=None)

    def note_job(self, job: str, log: Path) -> None:
        """Notes the Slurm job that will execute the run."""
        files.write_json(self.job_file, {"job": job, "log": str(log)})

    def forget_job(self) -> None:
        """Notes that no Slurm job is going to execute the run."""
        files.check_allowed(self.folder)
        self.job_file.unlink(missing_ok=True)

    def config(self) -> DictConfig:
        """The composed config, which is read once.

        A `UserError` says so if config.yaml is missing or damaged.
        """
        return self._config

    @cached_property
    def _config(self) -> DictConfig:
        from omegaconf import OmegaConf

        content = self.plain_config()
        missing = [key for key in CONFIG_PARTS if key not in content]
        if missing:
            lacks = ", ".join(missing)
            raise UserError(f"{self.config_file} is not the config of a run: it has no {lacks}.")
        try:
            config = OmegaConf.create(content)
            OmegaConf.resolve(config)
        except Exception as error:
            raise UserError(f"{self.config_file} cannot be read: {first_line(error)}") from error
        return config

    def plain_config(self) -> dict[str, Any]:
        """The composed config as plain YAML: much faster than `config`.

        Interpolations within ``module`` stay as they are.

        Raises:
            UserError: config.yaml is missing or damaged.
        """
        try:
            content = files.parse_yaml(self._verified(self.config_file))
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = first_line(error)
            raise UserError(f"{self.config_file} cannot be read: {reason}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.config_file} is not the config of a run.")
        return content

    def summary(self, record: RunRecord | None = None) -> dict[str, float]:
        """The final scalars, empty while there are none.

        Args:
            record: the run's record, if it was read already.

        Raises:
            UserError: summary.json is damaged, or something in it is no number.
        """
        if not self.summary_file.exists():
            return {}
        text = self._verified(self.summary_file, record)
        try:
            return _METRICS.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"{key}: " for key in first["loc"])
            raise UserError(f"{self.summary_file} cannot be read: {key}{first['msg']}.") from None

    def _verified(self, file: Path, record: RunRecord | None = None) -> str:
        """The text of a file of the run.

        Raises:
            UserError: it cannot be read, or is not what was written.
        """
        try:
            content = file.read_bytes()
            text = content.decode()
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}.") from error
        if record is None and self.record_file.is_file():
            record = read_record(RunRecord, self.record_file)
        expected = None if record is None else record.checksums.get(file.name)
        if expected is not None and expected != files.checksum(content):
            raise UserError(f"{file} is damaged: it is not what was written.")
        return text

    def measured(self, record: RunRecord | None = None) -> MeasuredRun:
        """The run's record, as given or as it stands in run.json, with its final scalars."""
        record = record or self.record()
        known = record.model_dump(exclude_unset=True)
        return MeasuredRun(**known, folder=self.folder, metrics=self.summary(record))

    def series(self, metric: str) -> dict[int, float]:
        """A metric's finite values by step, from metrics.csv."""
        if self.series_file.exists():
            self._verified(self.series_file)
        rows = read_series(self.series_file, [metric])
        return {
            row["step"]: row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))
        }

    def parent(self) -> Run | None:
        """The run whose checkpoint this one starts from."""
        relative = self.record().parent
        return Run.open((self.folder / relative).resolve()) if relative else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Marks the run as being executed by this process, for as long as the process lives."""
        with files.exclusive_lock(self.folder / names.LOCK), files.anchored(self.folder):
            files.remove_leftovers(self.folder)
            yield

    @property
    def is_held(self) -> bool:
        """Whether some process that this machine can see executes the run."""
        return files.is_locked(self.folder / names.LOCK)

    @property
    def executor(self) -> str:
        """Who executes the run, in words."""
        record = self.record()
        began = "" if record.started is None else f" since {record.started.astimezone():%F %T}"
        return f"process {record.pid} on {record.host}{began}"

    def _is_lost(self, record: RunRecord) -> bool:
        """Whether the process that executed the run is gone, if this machine can tell."""
        # The lock of another machine may not be visible here: then its word must do.
        is_here = record.status is Status.RUNNING and record.host == socket.gethostname()
        return is_here and not self.is_held


class _YamlDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes what `OmegaConf.load` reads back as it was."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A string, in quotes where OmegaConf alone takes it for a number, as 1e-3."""
        style = "'" if names.is_number(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_YamlDumper.add_representer(str, _YamlDumper.represent_text)


def _as_yaml(content: dict[str, Any] | list[str]) -> str:
    """What `OmegaConf.to_yaml` writes, without making a config of it first, which takes longer."""
    text: str = yaml.dump(content, Dumper=_YamlDumper, allow_unicode=True, sort_keys=False)
    return text


def process_identity() -> dict[str, Any]:
    """Who executes: host and process number."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
