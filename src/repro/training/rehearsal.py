"""A rehearsal: some steps of a run, measured, with evaluation, a checkpoint and a resume."""

from __future__ import annotations

import itertools
import math
import resource
import signal
import statistics
import time
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.internals import tree_leaves
from repro.records.rehearsal import Rehearsal, keep_rehearsal
from repro.records.run import Run
from repro.toolbox.costs import CountFlops, PeakMemory, peak_flops
from repro.training.checkpoints import Interrupted
from repro.training.hardware import processor

COUNTED = 1  # the step, from zero, whose operations and memory are counted
LOADER_SECONDS = 3.0  # for which the loader is measured alone


class Rehearsing(Callback):
    """Ends a run after some steps, cuts it once before that, and writes down what it measured.

    What the config says of the training stays as it is, so the schedule and the number of steps of
    the whole run are the real ones. Once there is a checkpoint the training stops as if it had been
    killed; the engine then goes on from there with a callback made anew.

    Args:
        run: whose config says ``rehearsal: {steps, minutes, eval_batches}``.
    """

    pruned = False  # what the engine asks the callback of a search

    def __init__(self, run: Run) -> None:
        self.run = run
        self.settings = run.config().rehearsal
        self.resumed = run.last_checkpoint.is_file()
        self.began = time.monotonic()
        self.counters = ExitStack()
        self.flops = CountFlops()
        self.memory: PeakMemory | None = None
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.evaluations: list[float] = []
        self.samples: int | None = None
        self.mark = 0.0
        self.is_cut = False  # rather than at its own end

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Cuts evaluation short."""
        trainer.limit_val_batches = trainer.limit_test_batches = self.settings.eval_batches
        trainer.check_val_every_n_epoch = 1
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    # -- Steps ------------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts timing a step.

        Raises:
            Interrupted: there is a checkpoint to resume from, and this is the first attempt.
        """
        if not self.resumed and trainer.global_step and self.run.last_checkpoint.is_file():
            raise Interrupted
        now = self._now(pl_module)
        self.waits.append(now - self.mark if batch_idx and self.steps else 0.0)
        if samples := _samples(batch):
            self.samples = samples * trainer.world_size
        if len(self.steps) == COUNTED:
            self.memory = PeakMemory(pl_module.device, _kept(trainer, pl_module))
            self.counters.enter_context(self.memory)
            self.counters.enter_context(self.flops)
        self._allow(self.settings.minutes)
        self.mark = self._now(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Ends a step, and training if it was the last one."""
        self.counters.close()
        self._allow(None)
        now = self._now(pl_module)
        self.steps.append(now - self.mark)
        self.mark = now
        is_late = time.monotonic() - self.began > 60 * self.settings.minutes
        if not trainer.should_stop and (trainer.global_step >= self.settings.steps or is_late):
            self.is_cut = trainer.should_stop = True

    def on_exception(self, *_: Any) -> None:
        """Counts no further."""
        self.counters.close()
        self._allow(None)

    def _allow(self, minutes: float | None) -> None:
        """Ends what comes now after so many minutes; None is for ever."""
        signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0.0))
        signal.signal(signal.SIGALRM, self._end_what_is_late if minutes else signal.SIG_DFL)

    def _end_what_is_late(self, *_: Any) -> None:
        raise UserError(f"It takes longer than {self.settings.minutes:g} minutes: say --minutes.")

    # -- Evaluation -------------------------------------------------------------------------------

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Starts timing a batch that is measured."""
        self.mark = self._now(pl_module)

    @override
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Ends it."""
        self.evaluations.append(self._now(pl_module) - self.mark)

    @override
    def on_test_start(self, *_: Any) -> None:
        """Gives the test, which may do far more than look at batches, as long as the steps."""
        self._allow(self.settings.minutes)

    @override
    def on_test_end(self, *_: Any) -> None:
        """Takes that back."""
        self._allow(None)

    # -- The record -------------------------------------------------------------------------------

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes down what was measured, once training has ended and its state is saved."""
        if stage == "fit" and trainer.is_global_zero:
            keep_rehearsal(self.run, self._measured(trainer, pl_module))

    def _measured(self, trainer: pl.Trainer, module: pl.LightningModule) -> Rehearsal:
        config = self.run.config()
        device, on_gpu = module.device, module.device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else processor()
        total = trainer.estimated_stepping_batches if self.is_cut else trainer.global_step
        clean = self.steps[COUNTED + 1 :] or self.steps[:COUNTED]
        files = (self.run.last_checkpoint, self.run.best_checkpoint)
        return Rehearsal(
            device=name,
            devices=trainer.world_size,
            precision=str(config.hardware.precision),
            parameters=sum(each.numel() for each in _parameters(module)),
            steps=trainer.global_step,
            resumed=self.resumed,
            step_ms=_median_ms(clean),
            wait_ms=_median_ms(self.waits[1:]) or 0.0,
            eval_ms=_median_ms(self.evaluations[1:] or self.evaluations),
            samples=self.samples,
            loader_samples_per_second=_loader_speed(trainer),
            flops_per_step=self.flops.flops or None,
            peak_flops=peak_flops(name, _arithmetic(config.hardware)) if on_gpu else None,
            step_memory_mb=None if self.memory is None else _mb(self.memory.peak),
            device_memory_mb=_mb(torch.cuda.max_memory_allocated(device)) if on_gpu else None,
            device_capacity_mb=_mb(torch.cuda.mem_get_info(device)[1]) if on_gpu else None,
            host_memory_mb=_mb(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
            checkpoint_bytes=sum(file.stat().st_size for file in files if file.is_file()),
            total_steps=int(total) if math.isfinite(total) else None,
            eval_batches=_eval_batches(trainer, config.training.val_every),
        )

    @staticmethod
    def _now(module: pl.LightningModule) -> float:
        """The time at which all that was asked of the device is done."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()


def _kept(trainer: pl.Trainer, module: pl.LightningModule) -> list[Tensor]:
    """The tensors that are there between steps: weights, buffers, the optimizers' state."""
    states = [value for each in trainer.optimizers for value in each.state.values()]
    kept = [*module.parameters(), *module.buffers(), *tree_leaves(states)]
    return [each for each in kept if isinstance(each, Tensor)]


def _parameters(module: pl.LightningModule) -> set[nn.Parameter]:
    """All parameters, those of models that a procedure keeps to itself in a list included."""
    lists = [value for value in vars(module).values() if isinstance(value, list)]
    models = [each for value in lists for each in value if isinstance(each, nn.Module)]
    return {parameter for each in (module, *models) for parameter in each.parameters()}


def _median_ms(seconds: list[float]) -> float | None:
    return round(1e3 * statistics.median(seconds), 3) if seconds else None


def _mb(size: float) -> float:
    return round(size / 2**20, 1)


def _arithmetic(hardware: Any) -> str:
    """The kind of numbers that products are made of."""
    if "bf16" in str(hardware.precision):
        return "bf16"
    return "tf32" if hardware.get("tf32") else "float32"


def _eval_batches(trainer: pl.Trainer, val_every: int) -> int:
    """The batches of all validations and the test of the whole run, on one process."""
    data = _data(trainer)
    if data is None or not trainer.max_epochs or trainer.max_epochs < 0:
        return 0
    epochs = trainer.max_epochs
    if trainer.max_steps > 0:
        epochs = min(epochs, math.ceil(trainer.max_steps / max(1, trainer.num_training_batches)))
    validations = math.ceil(epochs / val_every)
    return validations * _length(data.val_dataloader) + _length(data.test_dataloader)


def _data(trainer: pl.Trainer) -> Any:
    """The run's data; None before there are any."""
    return getattr(trainer, "datamodule", None)


def _samples(batch: Any) -> int:
    """How many samples a batch has, by its first tensor; 0 where that does not tell."""
    tensors = [each for each in tree_leaves(batch) if isinstance(each, Tensor)]
    return len(tensors[0]) if tensors and tensors[0].dim() else 0


def _length(loader: Any) -> int:
    try:
        return len(loader())
    except (MisconfigurationException, TypeError):  # none, or one that does not know
        return 0


def _loader_speed(trainer: pl.Trainer) -> float | None:
    """Samples a second of the training data alone, after the first batch."""
    data = _data(trainer)
    if data is None:
        return None
    samples, began = 0, 0.0
    for number, batch in enumerate(itertools.islice(data.train_dataloader(), 64)):
        now = time.perf_counter()
        if not number:
            began = now
            continue
        samples += _samples(batch)
        if now - began > LOADER_SECONDS:
            break
    seconds = time.perf_counter() - began
    return round(samples / seconds, 1) if samples and seconds > 0 else None
