"""What the engine adds to Lightning: exact checkpoints, and knowing when to stop."""

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
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from typing_extensions import override

from repro.records import files, names
from repro.training.lightning import epoch_row, fresh_metrics, restore_loaders
from repro.training.pace import pause_after
from repro.training.series import CsvLogger

log = logging.getLogger("repro")


class Interrupted(Exception):  # noqa: N818 - a signal, not an error
    """Training stopped on request, its state saved as far as it can be."""


class Diverged(Exception):  # noqa: N818 - a result, not an error
    """A training loss became infinite or not a number."""


class Watch(Callback):
    """Watches the steps: times them, tells how far training is, and stops it when it diverged.

    One callback for three small duties, because Lightning spends more on calling a callback than
    each of them takes. Losses are checked in one go every ``check_every`` steps and at the end of
    an epoch, before the epoch is validated, so that the device is not made to wait at each step.

    Args:
        check_every: steps between two looks at whether the losses are finite.
        report: told the fraction of steps that are done, steps per second, and the mean loss
            between the last two looks at the losses; None before the first.
        report_every: least seconds between two reports; more where one takes long.
    """

    def __init__(
        self,
        check_every: int,
        report: Callable[[float, float, float | None], None],
        report_every: float = 1.0,
    ) -> None:
        self.check_every = check_every
        self.report = report
        self.report_every = self.pause = report_every
        self.losses: Tensor | None = None  # summed: what is not finite stays so
        self.summed = 0  # so many of them
        self.loss: float | None = None  # their mean at the last look
        self.seconds = 0.0
        self.steps = 0
        self.started = 0.0
        self.reported_at = 0.0
        self.reported_steps = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Says so where epochs are cut to more steps than they have, which Lightning does not."""
        asked, batches = trainer.limit_train_batches, trainer.num_training_batches
        if isinstance(asked, int) and batches < asked:
            log.warning(
                "training.steps_per_epoch=%d, but an epoch has %d batches: it takes %d steps",
                asked, batches, batches,
            )  # fmt: skip

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts timing a step."""
        self.started = time.perf_counter()
        if not self.steps:
            self.reported_at = self.started

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Ends a step; `Diverged` says so if the training loss is not finite."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach().sum()
            self.losses = loss if self.losses is None else self.losses + loss
            self.summed += 1
            if trainer.global_step % self.check_every == 0 or trainer.is_last_batch:
                self._look(trainer.global_step)
        now = time.perf_counter()
        self.seconds += now - self.started
        self.steps += 1
        if now - self.reported_at >= self.pause and trainer.is_global_zero:
            steps = self.steps - self.reported_steps
            done = trainer.global_step / max(1, trainer.estimated_stepping_batches)
            self.report(done, steps / (now - self.reported_at), self.loss)
            self.reported_at, self.reported_steps = now, self.steps
            self.pause = pause_after(time.perf_counter() - now, self.report_every)

    def _look(self, step: int) -> None:
        """Waits for the losses so far: the one place where the device is waited for.

        Raises:
            Diverged: they are not finite.
        """
        assert self.losses is not None
        total = float(self.losses)
        if not math.isfinite(total):
            raise Diverged(f"the training loss is not finite at step {step}")
        self.loss = total / self.summed
        self.losses, self.summed = None, 0

    def times(self) -> dict[str, float]:
        """Seconds of training steps alone, and milliseconds a step; of this attempt only."""
        return {
            "time/train_seconds": self.seconds,
            "time/step_ms": 1e3 * self.seconds / max(1, self.steps),
        }

    def state_dict(self) -> dict[str, Any]:
        """The losses that were not checked yet."""
        return {"losses": self.losses, "summed": self.summed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.losses, self.summed = state["losses"], state.get("summed", 1)


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
            self._save(trainer, names.BEST_CHECKPOINT, weights_only=True)

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
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                checkpoint["series"] = logger.text()

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
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger) and metrics:
                logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step)
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
        self._save(trainer, names.LAST_CHECKPOINT, weights_only=False)
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                logger.write()
        self.saved_at = time.monotonic()

    def _save(self, trainer: pl.Trainer, name: str, weights_only: bool) -> None:
        trainer.save_checkpoint(self.folder / name, weights_only)


def scalars(metrics: Any) -> dict[str, float]:
    """Logged metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items() if name != "epoch"}


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
