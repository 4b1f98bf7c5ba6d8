"""One DGC training that two processes and two simulated workers must do alike.

Language data, because there the simulated workers get the same parts of a batch as processes do;
64 bits, because sums over workers are rounded in another order.
"""

from __future__ import annotations

import pytest
import torch

from repro.records.run import Run, Status

TRAINING = [
    "paper=dgc",
    "scale=smoke",
    "arm=dgc",
    "seed=0",
    "dataset=stdlib_text",
    "dataset.max_bytes=40000",
    "model=lstm",
    "model.hidden=8",
    "model.embedding=8",
    "training.monitor=val/loss",
    "training.epochs=2",
    "training.steps_per_epoch=10",
    "training.mode=min",
    "method.ratio=0.05",
    "method.warmup_epochs=0",
    "hardware.precision=64-true",
]
SIMULATED = [
    *TRAINING,
    "hardware=cpu",
    "method.workers=2",
    "dataset.batch_size=16",
    "dataset.eval_batch_size=16",
]
PROCESSES = [*TRAINING, "dataset.batch_size=8", "dataset.eval_batch_size=8"]


def assert_same_training(left: Run, right: Run) -> None:
    """Both runs ended with the same weights and the same measures of what they learned."""
    weights = []
    for run in (left, right):
        assert run.status() is Status.FINISHED
        weights.append(torch.load(run.last_checkpoint, weights_only=True)["state_dict"])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-9, atol=1e-12)
    for metric in ("train/loss", "val/loss", "test/loss", "comm/bytes_per_step"):
        assert left.summary()[metric] == pytest.approx(right.summary()[metric], rel=1e-9)
