"""A run directory: everything needed to execute, resume and judge one run.

config.yaml     the composed config (interpolations resolved, but for those of ``module``)
overrides.yaml  the overrides that led to it
run.json        status, progress, timings, versions, fingerprints, hardware, errors
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

from repro.engine import files
from repro.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_PARTS = ("seed", "training", "hardware", "logger", "dataset", "module")


class Status(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"  # a loss became infinite or not a number: a result, not a failure
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        """Whether resuming the study leaves this run alone."""
        return self in (Status.FINISHED, Status.DIVERGED)


@dataclass(frozen=True)
class Run:
    """One run directory."""

    folder: Path

    @classmethod
    def create(
        cls, folder: Path, config: DictConfig, overrides: list[str], record: dict[str, Any]
    ) -> Run:
        """Prepares a run directory that can be executed at once, or by another process later."""
        from omegaconf import OmegaConf

        files.make_folder(folder)
        files.write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
        files.write_text(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
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
        if record.get("status") == Status.RUNNING and not self._is_alive(record):
            record["status"] = Status.INTERRUPTED
        return record

    def status(self) -> Status:
        """Where the run stands now."""
        return Status(self.record()["status"])

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

    def _is_alive(self, record: dict[str, Any]) -> bool:
        if record.get("host") != socket.gethostname():
            return True  # another machine of the cluster: its lock may not be visible here
        return files.is_locked(self.folder / ".lock")


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_identity() -> dict[str, Any]:
    """Who executes: host and process number."""
    return {"host": socket.gethostname(), "pid": os.getpid()}
