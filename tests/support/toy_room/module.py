"""Supervised training that can be made to fail, or to be hit by a signal, at a chosen moment."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from repro.errors import UserError
from repro.toolbox.method import Batch
from repro.training.supervised import Supervised

EVENT = "TOY_EVENT"  # one or a list of {"what", "at": "step 30", "arm", "once": file}; see below


class NoisyMLP(nn.Module):
    """A perceptron with dropout and with noise from torch, NumPy and Python."""

    def __init__(self, inputs: int, classes: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits; noisy ones while training."""
        if self.training:
            x = x + 0.01 * (torch.rand(()) + float(np.random.rand()) + random.random())
        output: Tensor = self.layers(x)
        return output


class ToyTraining(Supervised):
    """What the environment variable ``TOY_EVENT`` asks for happens at a moment of one arm's run.

    ``what`` is a signal's name, ``error``, ``user error``, ``infinite weights`` or ``requeue``; the
    moments are ``step N``, ``validation N`` and ``test``. With ``once``, a file, it happens once.
    """

    def __init__(self, *args: Any, arm: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.arm = arm
        asked = json.loads(os.environ.get(EVENT, "[]"))
        self.events: list[dict[str, str]] = asked if isinstance(asked, list) else [asked]
        self.test_noise = torch.zeros(())
        self.ended_at = -1

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update."""
        outcome = super().training_step(batch, batch_idx)
        self._moment(f"step {self.global_step}")
        return outcome

    def on_validation_start(self) -> None:
        """Starts a validation."""
        super().on_validation_start()
        self._moment(f"validation {self.current_epoch}")

    def on_train_end(self) -> None:
        """Notes that training came to its end, as modules do that measure something there."""
        self.ended_at = self.global_step

    def on_test_start(self) -> None:
        """Starts the test, with a random number that a resumed run must draw as well."""
        super().on_test_start()
        self._moment("test")
        self.test_noise = torch.rand(())

    def on_test_epoch_end(self) -> None:
        """Logs what the end of training and the test's random number were."""
        super().on_test_epoch_end()
        self.log_dict({"test/noise": self.test_noise, "test/ended_at": float(self.ended_at)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what `on_train_end` noted."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ended_at"] = self.ended_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        self.ended_at = checkpoint["ended_at"]

    def _moment(self, name: str) -> None:
        for event in self.events:
            self._maybe(event, name)

    def _maybe(self, event: dict[str, str], name: str) -> None:
        if event.get("at") != name or event.get("arm", self.arm) != self.arm:
            return
        if "once" in event:
            try:
                Path(event["once"]).touch(exist_ok=False)  # one of two runs at once wins
            except FileExistsError:
                return
        if event["what"] == "error":
            raise ValueError("something broke\nin two lines")
        if event["what"] == "infinite weights":
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.inf)
            return
        if event["what"] == "requeue":
            # The array's own number may be a task's SLURM_JOB_ID too: that would requeue all tasks.
            task = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
            subprocess.run(["scontrol", "requeue", task], check=True)
            time.sleep(3)  # Slurm's signal must not find the run already finished
            return
        if event["what"] == "user error":
            raise UserError("The toy was told to fail.")
        os.kill(os.getpid(), signal.Signals[event["what"]])


class Counting(Callback):
    """Writes down how many epochs it saw."""

    epochs = 0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Counts."""
        self.epochs += 1
        folder = Path(trainer.default_root_dir) / "artifacts"
        folder.mkdir(exist_ok=True)
        (folder / "epochs.json").write_text(str(self.epochs))
