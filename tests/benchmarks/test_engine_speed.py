"""What the engine costs over a bare PyTorch loop: same model, data, optimizer, schedule, thread."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Status
from repro.training import checkpoints
from repro.training.execute import execute_here

REPEATS = 5


class Clock:
    """Time of this thread's processor and on the wall; the former is fair on a busy machine."""

    def __init__(self) -> None:
        self.start = (time.thread_time(), time.perf_counter())

    def stop(self) -> tuple[float, float]:
        return time.thread_time() - self.start[0], time.perf_counter() - self.start[1]


def through_the_engine(
    folder: Path, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """The time of `Trainer.fit` between its first and its last step, all callbacks included."""
    taken: list[tuple[float, float]] = []

    class Timed(checkpoints.Watch):
        def on_train_start(self, *_: Any) -> None:
            self.clock = Clock()

        def on_train_end(self, *_: Any) -> None:
            taken.append(self.clock.stop())

    monkeypatch.setattr("repro.training.checkpoints.Watch", Timed)
    run = create_study(plan_study(["paper=toy", *typed]), folder / "outputs").runs[0]
    assert execute_here(run) == Status.FINISHED
    return taken[0]


def bare_loop(config: Any, folder: Path) -> tuple[float, float]:
    """The same training and validation as people write them by hand; the weights are kept too."""
    data = instantiate(config.dataset)
    model = instantiate(config.model)
    optimizer = instantiate(config.optimizer)(model.parameters())
    batches = data.train_dataloader()
    scheduler = instantiate(config.schedule)(optimizer, config.training.epochs * len(batches))
    clock = Clock()
    for _ in range(config.training.epochs):
        for inputs, target in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        for inputs, target in data.val_dataloader():
            F.cross_entropy(model(inputs), target)
    torch.save(model.state_dict(), folder / "best.pt")
    return clock.stop()


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("size", "limit"),
    [
        (["model.hidden=[384,256]", "training.epochs=20", "training.val_every=20"], 1.5),
        (["model.hidden=[2304,1280]", "training.epochs=15", "training.val_every=15"], 1.05),
    ],
    ids=["about 1 ms a step", "over 10 ms a step"],
)
def test_training_costs_little_more_than_a_bare_loop(
    toy: Path, monkeypatch: pytest.MonkeyPatch, size: list[str], limit: float
) -> None:
    typed = ["arm=sgd", "seed=0", "model=mlp", *size]
    config = plan_study(["paper=toy", *typed]).runs[0].config
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    bare_loop(config, toy)
    steps = config.training.epochs * (1293 // config.dataset.batch_size)
    pairs = [
        (through_the_engine(toy, typed, monkeypatch), bare_loop(config, toy))
        for _ in range(REPEATS)
    ]
    medians = [statistics.median(engine[i] / bare[i] for engine, bare in pairs) for i in (0, 1)]
    # The fastest of each: whatever else the machine does only ever adds time.
    best = min(engine[0] for engine, _ in pairs) / min(bare[0] for _, bare in pairs)
    print(
        f"{1e3 * min(bare[0] for _, bare in pairs) / steps:.2f} ms a step; engine / bare loop: "
        f"{best:.3f} at best, median {medians[0]:.3f} (processor), {medians[1]:.3f} (wall)"
    )
    assert best <= limit
