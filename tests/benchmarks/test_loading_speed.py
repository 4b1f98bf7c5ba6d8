"""Photographs as large as those of ImageNet are read faster than ResNet-50 learns of them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from timing import faster

from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.rehearse import stood_in

BATCH = 8


def test_the_loader_keeps_ahead_of_resnet50() -> None:
    """On the same cores: decoding, crops and flips of the stand-in, against a training step."""
    typed = ["paper=dgc", "scale=full_imagenet", "arm=dense", "seed=0", "hardware=cpu"]
    typed += [f"dataset.batch_size={BATCH}", "dataset.workers=0"]
    config = stood_in(plan_study(typed).runs[0].content)
    data: Any = instantiate(config["dataset"])
    model: Any = instantiate(config["model"])
    model.to(memory_format=torch.channels_last)
    batches = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
    x, y = next(batches)
    assert x.shape == (BATCH, 3, 224, 224)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(x), y).backward()

    faster(f"reading {BATCH} photographs, against a step of ResNet-50",
           lambda: next(batches), step, 2.0, repeats=3)  # fmt: skip
