"""Exact checkpoints: when they are written, what is in them, and reading them again."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from repro.errors import UserError, first_line
from repro.records import files, names
from repro.records.run import Run
from repro.training.lightning import epoch_row, fresh_metrics, restore_loaders
from repro.training.series import CsvLogger

log = logging.getLogger("repro")


class Interrupted(Exception):  # noqa: N818 - a signal, not an error
    """Training stopped on request, its state saved as far as it can be."""


class AtomicFiles(TorchCheckpointIO):
    """Writes each checkpoint whole or not at all, and with a checksum."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Replaces the file in one step."""
        files.make_folder(Path(path).parent)
        files.write_sealed(Path(path), lambda file: torch.save(checkpoint, file))


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, the one before it, and ``best.ckpt``, each replaced in one atomic step.

    ``last.ckpt`` carries the state of all random number generators, so that a resumed run
    continues with the numbers the straight run would have drawn, and the series so far.

    Args:
        folder: where the checkpoints go.
        every_seconds: least time between two ``last.ckpt`` at ends of epochs.
        every_steps: also save within an epoch, every so many steps.
        best: keep ``best.ckpt``.
        monitor: the validation metric that best means.
        mode: ``min`` or ``max``.
        should_stop: asked after each step; True saves and stops.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float,
        every_steps: int | None,
        best: bool,
        monitor: str,
        mode: str,
        should_stop: Callable[[], bool],
    ) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        self.best = best
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.should_stop = should_stop
        self.best_value = math.inf
        self.saved_at = time.monotonic()
        self.random_state: dict[str, Any] | None = None
        self.validated: dict[str, float] = {}  # by the last validation
        self.latest: dict[str, float] = {}  # by the last epoch, and the last validation
        self.logged: dict[str, float] = {}  # by the last epoch that was well, and its validation

    @override
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Puts the data and the random number generators where the checkpoint had them."""
        restore_loaders(trainer)
        self._restore_random_state()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Saves within an epoch when asked to, and stops on request.

        Raises:
            Interrupted: this is the request.
        """
        if self._is_over(trainer):
            trainer.should_stop = True  # so that max_steps within an epoch ends with a validation
        if trainer.is_last_batch or trainer.should_stop:
            return
        mid_epoch = getattr(module, "resumes_mid_epoch", False)
        if self.every_steps and mid_epoch and trainer.global_step % self.every_steps == 0:
            self._save_last(trainer)
        if self._agree_to_stop(trainer):
            if mid_epoch:
                self._save_last(trainer)
            raise Interrupted

    @override
    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Notes the measures, and keeps the weights if they are the best so far."""
        if not trainer.sanity_checking:
            self.validated = scalars(fresh_metrics(trainer))
        value = trainer.callback_metrics.get(self.monitor)
        if not self.best or value is None or trainer.sanity_checking:
            return
        if self.sign * float(value) < self.best_value:
            self.best_value = self.sign * float(value)
            trainer.save_checkpoint(self.folder / names.BEST_CHECKPOINT, weights_only=True)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Saves when enough time has passed, and stops on request; the last epoch ends the fit.

        Raises:
            Interrupted: this is the request.
        """
        self._note_epoch(trainer)
        if self._is_over(trainer):
            return
        stopping = self._agree_to_stop(trainer)
        if stopping or time.monotonic() - self.saved_at >= self.every_seconds:
            self._save_last(trainer)
        if stopping:
            raise Interrupted

    @override
    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Saves the final state: after `on_train_end`, where modules may still measure."""
        if self.random_state is None:
            self._save_last(trainer)
        else:  # the checkpoint was that of a training already over: nothing was trained
            self._restore_random_state()

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the series, because metrics.csv goes on and may be lost or damaged."""
        for series in _series_of(trainer):
            checkpoint["series"] = series.text()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, the latest metrics, and the random number generators."""
        return {
            "best_value": self.best_value,
            "validated": self.validated,
            "latest": self.latest,
            "logged": self.logged,
            "random_state": _random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; the generators follow when training starts."""
        self.best_value = state["best_value"]
        self.validated = state["validated"]
        self.latest = state["latest"]
        self.logged = state["logged"]
        self.random_state = state["random_state"]

    def _restore_random_state(self) -> None:
        if self.random_state is not None:
            _set_random_state(self.random_state)
            self.random_state = None

    def _is_over(self, trainer: pl.Trainer) -> bool:
        """Whether this is the last step or epoch, which a checkpoint must not cut from its end."""
        in_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        return (
            trainer.should_stop
            or trainer.global_step == trainer.max_steps
            or (trainer.is_last_batch and in_last_epoch)
        )

    def _note_epoch(self, trainer: pl.Trainer) -> None:
        """Notes the epoch's metrics; Lightning logs them after this hook, too late to save."""
        row, step = epoch_row(trainer)
        metrics = scalars(row)
        for series in _series_of(trainer) if metrics else ():
            series.log_metrics({**metrics, "epoch": trainer.current_epoch}, step)
        self.latest = self.validated | scalars(fresh_metrics(trainer)) | metrics
        losses = [value for name, value in self.latest.items() if name.endswith("/loss")]
        # An epoch with a lost loss says nothing: what was last good stays.
        if all(map(math.isfinite, losses)):
            self.logged = self.latest

    def _agree_to_stop(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.should_stop()
        # All ranks must stop at the same step; asking costs a message, so not at each one.
        if trainer.global_step % 10 and not trainer.is_last_batch:
            return False
        return trainer.strategy.reduce_boolean_decision(self.should_stop(), all=False)

    def _save_last(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            files.keep_as(self.folder / names.LAST_CHECKPOINT, names.PREVIOUS_CHECKPOINT)
        trainer.save_checkpoint(self.folder / names.LAST_CHECKPOINT)
        for series in _series_of(trainer):
            series.write()
        self.saved_at = time.monotonic()


def scalars(metrics: Any) -> dict[str, float]:
    """Logged metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items() if name != "epoch"}


def newest_state(run: Run) -> dict[str, Any] | None:
    """The content of last.ckpt, which becomes the checkpoint before it if it is damaged.

    Returns:
        The state to go on from; None if there is none.

    Raises:
        UserError: every checkpoint is damaged.
    """
    try:
        return read_checkpoint(run.last_checkpoint)
    except UserError as error:
        if not run.previous_checkpoint.is_file():
            raise
        state = read_checkpoint(run.previous_checkpoint)
        log.warning("%s", first_line(error))
        run.previous_checkpoint.replace(run.last_checkpoint)
        return state


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """Loads a checkpoint without executing anything in it; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        return _load_checkpoint(file)
    except Exception as error:
        raise UserError(
            f"{file} is damaged or not a checkpoint of repro: {first_line(error)}\n"
            "Delete it to start this run again."
        ) from error


def _load_checkpoint(file: Path) -> dict[str, Any]:
    files.check_sealed(file)
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if "state_dict" not in checkpoint or "global_step" not in checkpoint:
        raise ValueError("it holds no training state")
    return checkpoint


def _series_of(trainer: pl.Trainer) -> list[CsvLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CsvLogger)]


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
