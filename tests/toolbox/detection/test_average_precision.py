"""COCO's average precision against pycocotools 2.0.11, on random detections of a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from repro.toolbox.detection import AveragePrecision, Detections

# What pycocotools says of `images(seed)`: seed 1 has many equal scores.
REFERENCE = {
    0: {"ap": 0.11666412984406976, "ap50": 0.2820502681583561, "ap75": 0.05718708532481001,
        "ap_small": 0.06830696382922310, "ap_medium": 0.2561016619438286,
        "ap_large": 0.5708333333333333},
    1: {"ap": 0.08575620920956613, "ap50": 0.23631462704017362, "ap75": 0.04063371347787211,
        "ap_small": 0.09654094168793171, "ap_medium": 0.14626202965338059,
        "ap_large": 0.04930555555555556},
}  # fmt: skip


def images(seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Boxes, scores and labels of detections; boxes, labels, crowds and areas of objects."""
    draw = np.random.default_rng(seed)
    for number in range(30):
        count = int(draw.integers(0, 8)) if number % 7 else 0
        corner = draw.integers(0, 200, (count, 2)).astype(float)
        size = np.exp(draw.uniform(1.5, 5.2, (count, 2)))
        objects = np.concatenate([corner, corner + size], 1)
        labels, crowd = draw.integers(0, 3, count), draw.random(count) < 0.15
        area = size.prod(1) * draw.uniform(0.5, 1, count)
        close = objects + draw.normal(0, 3, objects.shape) * size.mean(1, keepdims=True) / 30
        far = objects + draw.normal(0, 6, objects.shape)
        wrong = draw.integers(0, 200, (5, 2)).repeat(2, 1) + np.array([0, 0, 40, 30.0])
        found = np.concatenate([close, far, wrong], 0)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        found = found[:0] if number % 5 == 4 else found
        theirs = np.concatenate([labels, labels, draw.integers(0, 3, 5)])[: len(found)]
        scores = np.round(draw.random(len(found)), 1 if seed % 2 else 4)
        arrays = (found, scores, theirs, objects, labels, crowd, area)
        yield tuple(torch.as_tensor(array) for array in arrays)


@pytest.mark.parametrize("seed", REFERENCE)
def test_it_is_that_of_pycocotools(seed: int) -> None:
    metric = AveragePrecision()
    for boxes, scores, labels, *objects in images(seed):
        metric.add(Detections(boxes, scores, labels), *objects)
    assert metric.compute() == pytest.approx(REFERENCE[seed], abs=1e-12)


def test_a_wrong_detection_above_a_right_one_halves_it() -> None:
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10]])
    metric, label = AveragePrecision(), torch.tensor([0, 0])
    metric.add(Detections(boxes, torch.tensor([0.9, 0.8]), label), boxes[1:], label[1:])
    assert metric.compute()["ap"] == pytest.approx(0.5)
    assert math.isnan(metric.compute()["ap_large"])


def test_nothing_was_there_to_be_found() -> None:
    assert math.isnan(AveragePrecision().compute()["ap"])
