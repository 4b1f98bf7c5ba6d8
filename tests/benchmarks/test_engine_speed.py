"""What the engine costs over a bare PyTorch loop: same model, data, optimizer, schedule, thread."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rooms import configs, finished
from torch.nn import functional as F

from repro.planning.instantiate import instantiate
from repro.training import watch

REPEATS = 5


def through_the_engine(folder: Path, typed: list[str], monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds of `Trainer.fit` between its first and its last step, all callbacks included."""
    taken: list[float] = []

    class Timed(watch.Watch):
        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            taken.append(time.perf_counter() - self.start)

    monkeypatch.setattr("repro.training.watch.Watch", Timed)
    finished(folder / "outputs", "paper=toy", "seed=0", *typed)
    return taken[0]


def bare_loop(config: Any, folder: Path) -> float:
    """The same training and validation as people write them by hand; the weights are kept too.

    They are waited for until they lie on the disk, which takes as long in any loop.
    """
    data = instantiate(config.dataset)
    model = instantiate(config.model)
    optimizer = instantiate(config.optimizer)(model.parameters())
    batches = data.train_dataloader()
    scheduler = instantiate(config.schedule)(optimizer, config.training.epochs * len(batches))
    start = time.perf_counter()
    for _ in range(config.training.epochs):
        for inputs, target in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        for inputs, target in data.val_dataloader():
            F.cross_entropy(model(inputs), target)
    with (folder / "best.pt").open("wb") as file:
        torch.save(model.state_dict(), file)
        os.fsync(file.fileno())
    return time.perf_counter() - start


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
    typed = ["arm=sgd", "model=mlp", *size]
    (config,) = configs("paper=toy", *typed).values()
    torch.use_deterministic_algorithms(True)
    bare_loop(config, toy)
    pairs = [
        (through_the_engine(toy, typed, monkeypatch), bare_loop(config, toy))
        for _ in range(REPEATS)
    ]
    # The fastest of each: whatever else the machine does only ever adds time.
    engine, bare = (min(times) for times in zip(*pairs, strict=True))
    steps = config.training.epochs * (1293 // config.dataset.batch_size)
    print(f"{1e3 * bare / steps:.2f} ms a step; engine / bare loop: {engine / bare:.3f}")
    assert engine <= limit * bare
