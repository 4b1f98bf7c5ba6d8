"""A trace of some training steps, by PyTorch's profiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from repro.knobs import Count, Natural, checked
from repro.records import files, names

FILE = "trace.json"


class Trace(Callback):
    """Writes what CPU and GPU did in some steps to the run's ``artifacts/trace.json``.

    Args:
        skip: steps before, in which kernels are chosen and memory is found.
        steps: steps that are recorded; fewer if training ends before.
    """

    @checked
    def __init__(self, skip: Natural = 5, steps: Count = 10) -> None:
        self.skip, self.steps = skip, steps
        self.profile: torch.profiler.profile | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Starts counting steps."""
        if not trainer.is_global_zero:
            return
        target = Path(trainer.default_root_dir) / names.ARTIFACTS / FILE
        files.make_folder(target.parent)
        self.profile = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=self.skip, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=lambda profile: profile.export_chrome_trace(str(target)),
        )
        self.profile.start()

    def on_train_batch_end(self, *_: Any) -> None:
        """Ends a step."""
        if self.profile is not None:
            self.profile.step()

    def on_train_end(self, *_: Any) -> None:
        """Writes what there is."""
        self._stop()

    def on_exception(self, *_: Any) -> None:
        """Likewise: training was interrupted, or failed."""
        self._stop()

    def _stop(self) -> None:
        if self.profile is not None:
            self.profile.stop()
            self.profile = None
