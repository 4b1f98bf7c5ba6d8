"""Watching the steps of a training: their time, how far it is, and whether its loss is finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from repro.training.pace import pause_after

log = logging.getLogger("repro")


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
