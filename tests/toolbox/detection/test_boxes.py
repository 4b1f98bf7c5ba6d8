"""Overlap, suppression, assignment and losses against loops over single boxes."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from repro.models.vision.gelan import Predictions
from repro.toolbox.detection import (
    DetectionLoss,
    ciou,
    detect,
    distance_loss,
    iou,
    suppress,
    task_aligned,
)


def random_boxes(*shape: int, size: float = 40.0) -> Tensor:
    corner = size * torch.rand(*shape, 2)
    return torch.cat([corner, corner + 2 + size / 2 * torch.rand(*shape, 2)], -1)


def plain_ciou(a: list[float], b: list[float]) -> float:
    """From Zheng et al., "Distance-IoU loss", 2020, for two boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    (w, h), (v, g) = ((box[2] - box[0], box[3] - box[1]) for box in (a, b))
    plain = shared / (w * h + v * g - shared)
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    around = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    shape = 4 / math.pi**2 * (math.atan(w / h) - math.atan(v / g)) ** 2
    weight = shape / (1 - plain + shape) if shape else 0.0
    return plain - (dx**2 + dy**2) / around - weight * shape


def test_complete_overlap_of_pairs() -> None:
    torch.manual_seed(0)
    one, other = random_boxes(6), random_boxes(5)
    expected = [[plain_ciou(a, b) for b in other.tolist()] for a in one.tolist()]
    assert torch.allclose(ciou(one[:, None], other), torch.tensor(expected), atol=1e-5)
    assert torch.allclose(ciou(one, one), torch.ones(6), atol=1e-6)


def test_the_weight_of_shapes_is_a_constant_for_gradients() -> None:
    box = torch.tensor([0.0, 0, 10, 20], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([2.0, 1, 14, 9], dtype=torch.float64)
    (found,) = torch.autograd.grad(ciou(box, other), box)
    plain = iou(box.detach(), other)
    shapes = [math.atan(10 / 20) - math.atan(12 / 8)]
    v = 4 / math.pi**2 * shapes[0] ** 2
    frozen = v / (1 - plain + v)

    def with_frozen(x: Tensor) -> Tensor:
        w, h = x[2] - x[0], x[3] - x[1]
        away = (x[:2] + x[2:] - other[:2] - other[2:]).square().sum() / 4
        low, high = torch.minimum(x[:2], other[:2]), torch.maximum(x[2:], other[2:])
        shape = 4 / math.pi**2 * (torch.atan(w / h) - math.atan(12 / 8)) ** 2
        return iou(x, other) - away / (high - low).square().sum() - frozen * shape

    (expected,) = torch.autograd.grad(with_frozen(box), box)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("block", [7, 512])
def test_suppression_is_that_of_a_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repro.toolbox.detection.boxes.BLOCK", block)
    torch.manual_seed(1)
    boxes, labels = random_boxes(60), torch.randint(2, (60,))
    scores = (torch.rand(60) * 20).round() / 20  # ties
    kept: list[int] = []
    for i in sorted(range(60), key=lambda i: -float(scores[i])):
        if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= 0.4 for j in kept):
            kept.append(i)
    assert suppress(boxes, scores, labels, 0.4, 100).tolist() == kept
    assert suppress(boxes, scores, labels, 0.4, 5).tolist() == kept[:5]
    assert suppress(boxes[:0], scores[:0], labels[:0], 0.4, 5).tolist() == []


def test_each_class_of_an_anchor_is_a_candidate() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 10, 10], [40, 40, 50, 50]]])
    logits = torch.tensor([[[2.0, 1], [1.5, -20], [-20, 0]]])
    (found,) = detect(boxes, logits, threshold=0.7)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.boxes[2].tolist() == [40, 40, 50, 50]
    assert torch.allclose(found.scores, torch.tensor([2.0, 1, 0]).sigmoid())
    (fewer,) = detect(boxes, logits, candidates=1)
    assert len(fewer.scores) == 1


class World(NamedTuple):
    """Predictions on a small grid, and objects, of which the second image has fewer."""

    found: Predictions
    labels: Tensor  # BM
    objects: Tensor  # BM4


@pytest.fixture
def world() -> World:
    torch.manual_seed(2)
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)) + 0.5
    centres, stride = 8 * grid.flip(1), torch.full((36,), 8.0)
    bins = 2 * torch.randn(2, 36, 4, 8)
    sides = (bins.softmax(-1) @ torch.arange(8.0)) * 8
    boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1)
    found = Predictions(bins, torch.randn(2, 36, 3), boxes, centres, stride)
    labels = torch.tensor([[0, 2, 2], [1, -1, -1]])
    objects = torch.tensor(
        [
            [[2.0, 3, 40, 44], [10, 8, 46, 40], [30, 30, 47, 47]],
            [[5, 5, 30, 44], [0, 0, 0, 0], [0, 0, 0, 0]],
        ]
    )
    return World(found, labels, objects)


def plain_assignment(world: World, image: int, top: int) -> dict[int, tuple[int, float]]:
    """The object and the target of each positive anchor, by the words of the paper."""
    found = world.found
    labels = [k for k in world.labels[image].tolist() if k >= 0]
    objects = world.objects[image].tolist()[: len(labels)]
    boxes, scores = found.boxes[image].tolist(), found.logits[image].sigmoid()
    centres = found.centres.tolist()
    overlaps = [[max(plain_ciou(o, b), 0) for b in boxes] for o in objects]
    claims: dict[int, list[int]] = {}
    for j, (o, k) in enumerate(zip(objects, labels, strict=True)):
        inside = [a for a, (x, y) in enumerate(centres) if o[0] < x < o[2] and o[1] < y < o[3]]
        inside.sort(key=lambda a: -(float(scores[a, k]) ** 0.5 * overlaps[j][a] ** 6))
        for a in inside[:top]:
            claims.setdefault(a, []).append(j)
    owner = {
        a: js[0] if len(js) == 1 else max(range(len(objects)), key=lambda j: overlaps[j][a])
        for a, js in claims.items()
    }
    result = {}
    for j, k in enumerate(labels):
        mine = [a for a in owner if owner[a] == j]
        m = {a: float(scores[a, k]) ** 0.5 * overlaps[j][a] ** 6 for a in mine}
        for a in mine:
            largest = max(overlaps[j][b] for b in mine)
            result[a] = j, m[a] * largest / (max(m.values()) + 1e-9)
    return result


@pytest.mark.parametrize("top", [3, 10, 99])
def test_assignment_is_that_of_loops(world: World, top: int) -> None:
    found, labels, objects = world
    scores = found.logits.sigmoid()
    assigned = task_aligned(scores, found.boxes, found.centres, labels, objects, top)
    for image in range(2):
        expected = plain_assignment(world, image, top)
        assert assigned.positive[image].nonzero().flatten().tolist() == sorted(expected)
        targets = torch.zeros(36, 3)
        for anchor, (number, target) in expected.items():
            targets[anchor, labels[image, number]] = target
            assert assigned.boxes[image, anchor].tolist() == objects[image, number].tolist()
        assert torch.allclose(assigned.scores[image], targets, atol=1e-5)
    assert assigned.scores.max() <= 1


def test_a_contested_anchor_goes_to_the_best_of_all_objects() -> None:
    """Two claim it because its centre lies in them; its box is that of a third one."""
    objects = torch.tensor([[[0.0, 0, 20, 20], [5, 5, 30, 15], [20, 0, 40, 20], [0, 0, 0, 0]]])
    centres, boxes = torch.tensor([[10.0, 10.0]]), objects[:, 2:3]
    labels = torch.tensor([[0, 1, 2, -1]])
    scores = torch.tensor([[[0.9, 0.8, 0.25]]])
    assigned = task_aligned(scores, boxes, centres, labels, objects)
    assert assigned.boxes.tolist() == [[[20, 0, 40, 20]]]
    assert torch.allclose(assigned.scores, torch.tensor([[[0.0, 0.0, 1.0]]]), atol=1e-6)
    uncontested = task_aligned(scores, boxes, centres, labels[:, 1:], objects[:, 1:])
    assert uncontested.boxes.tolist() == [[[5, 5, 30, 15]]]


def test_losses_are_those_of_loops(world: World) -> None:
    found, labels, objects = world
    loss = DetectionLoss()
    parts = loss.parts(found, loss.assign(found, labels, objects))
    targets = torch.zeros(2, 36, 3)
    box = distance = 0.0
    for image in range(2):
        for a, (number, target) in plain_assignment(world, image, 10).items():
            targets[image, a, labels[image, number]] = target
            thing = objects[image, number].tolist()
            box += target * (1 - plain_ciou(found.boxes[image, a].tolist(), thing))
            x, y = found.centres[a].tolist()
            sides = [x - thing[0], y - thing[1], thing[2] - x, thing[3] - y]
            for side, logs in zip(sides, found.bins[image, a].log_softmax(-1), strict=True):
                d = min(max(side / 8, 0), 8 - 1 - 0.01)
                low = math.floor(d)
                distance -= (
                    target / 4 * float((low + 1 - d) * logs[low] + (d - low) * logs[low + 1])
                )
    total = max(float(targets.sum()), 1)
    logits = found.logits
    category = (logits.clamp(min=0) - logits * targets + (1 + (-logits.abs()).exp()).log()).sum()
    expected = (box / total, float(category) / total, distance / total)
    assert [float(part) for part in parts] == pytest.approx(expected, rel=1e-4)
    whole = 7.5 * expected[0] + 0.5 * expected[1] + 1.5 * expected[2]
    assert float(loss(found, labels, objects)) == pytest.approx(whole, rel=1e-4)


def test_without_objects_only_classes_are_left(world: World) -> None:
    loss = DetectionLoss()
    for padded in (0, 2):
        labels, objects = torch.full((2, padded), -1), torch.zeros(2, padded, 4)
        parts = loss.parts(world.found, loss.assign(world.found, labels, objects))
        assert float(parts.box) == float(parts.distance) == 0
        logits = world.found.logits
        assert float(parts.category) == pytest.approx(float((1 + logits.exp()).log().sum()))


def test_a_distance_between_bins() -> None:
    bins = torch.tensor([0.0, 0, 0, math.log(3), 0, 0]).expand(1, 4, 6)
    logs = torch.log_softmax(bins[0, 0], 0)
    found = distance_loss(bins, torch.full((1, 4), 3.25))
    assert float(found) == pytest.approx(float(-0.75 * logs[3] - 0.25 * logs[4]))
    far = distance_loss(bins, torch.full((1, 4), 99.0))
    assert float(far) == pytest.approx(float(-0.01 * logs[4] - 0.99 * logs[5]), abs=1e-5)
