"""What folding saves, what assignment costs beside loops, and what the branch costs in training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timing import faster
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.yolov9 import Pgi
from repro.models.vision.gelan import gelan
from repro.toolbox.costs import PeakMemory, SavedForBackward
from repro.toolbox.detection import ciou, suppress, task_aligned


def test_the_folded_detector_is_faster() -> None:
    """GELAN-S, one image of 640 pixels."""
    plain = gelan("s").eval()
    folded = copy.deepcopy(plain).fold()
    x = torch.rand(1, 3, 640, 640)
    with torch.inference_mode():
        faster("GELAN-S folded", lambda: folded(x), lambda: plain(x), 1.05, repeats=3)


def test_the_graph_costs_no_more_than_its_convolutions() -> None:
    """GELAN-C at 640 pixels against its convolutions alone, on inputs of the same sizes."""
    model, x = gelan("c").eval().fold(), torch.rand(1, 3, 640, 640)
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        m.register_forward_pre_hook(lambda m, given: calls.append((m, given[0])))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.inference_mode():
        model(x)
        for hook in hooks:
            hook.remove()

        def plainly() -> None:
            for convolution, given in calls:
                F.silu(convolution(given), inplace=True)

        faster("GELAN-C beside its convolutions", lambda: model(x), plainly, 0.75, repeats=2)


def test_the_graph_is_no_slower_than_the_same_written_plainly() -> None:
    """GELAN-C at 640 pixels against a list of the same operations, without modules."""
    model, x = gelan("c").eval().fold(), torch.rand(1, 3, 640, 640)
    with torch.no_grad():
        plain = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(plain(x).boxes, model(x).boxes)
        faster("GELAN-C, against a list", lambda: model(x), lambda: plain(x), 0.95, repeats=2)


def loops(scores: Tensor, boxes: Tensor, centres: Tensor, labels: Tensor, objects: Tensor) -> None:
    """Assignment, box by box."""
    for image in range(len(scores)):
        for label, thing in zip(labels[image], objects[image], strict=True):
            inside = ((centres > thing[:2]) & (centres < thing[2:])).all(1).nonzero().flatten()
            overlap = ciou(thing, boxes[image, inside]).clamp(min=0)
            aligned = scores[image, inside, label] ** 0.5 * overlap**6
            aligned.topk(min(10, len(aligned)))


def test_assignment_is_no_slower_than_loops() -> None:
    """16 images, 8,400 anchors, 20 boxes, 80 classes; it also resolves what loops leave open."""
    count, anchors = 16, 8400
    centres = 640 * torch.rand(anchors, 2)
    boxes = torch.cat([centres - 20, centres + 20], 1).expand(count, -1, -1).contiguous()
    corner = 500 * torch.rand(count, 20, 2)
    objects = torch.cat([corner, corner + 100], -1)
    given = (torch.rand(count, anchors, 80), boxes, centres, torch.randint(80, (count, 20)))
    faster(
        "assignment",
        lambda: task_aligned(*given, objects),
        lambda: loops(*given, objects),
        0.1,
    )
    with PeakMemory(torch.device("cpu")) as memory:
        task_aligned(*given, objects)
    pairs = 4 * count * 20 * anchors  # bytes of one number for each image, box and anchor
    print(f"\nits peak: {memory.peak / 2**20:.0f} MB, {memory.peak / pairs:.0f} such numbers")
    assert memory.peak < 25 * pairs


def test_suppression_beats_a_matrix_of_all_pairs() -> None:
    boxes = torch.rand(4000, 2) * 600
    boxes = torch.cat([boxes, boxes + 40], 1)
    scores, labels = torch.rand(4000), torch.randint(80, (4000,))

    def by_matrix() -> None:
        order = scores.argsort(descending=True)
        sorted_ = boxes[order]
        low = torch.maximum(sorted_[:, None, :2], sorted_[:, :2])
        high = torch.minimum(sorted_[:, None, 2:], sorted_[:, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        near = (shared / (3200 - shared) > 0.7) & (labels[order][:, None] == labels[order])
        kept: list[int] = []
        for i in range(len(near)):
            if not near[i, kept].any():
                kept.append(i)

    faster("suppression", lambda: suppress(boxes, scores, labels, 0.7, 300), by_matrix, 2.0)


def test_memory_of_training_with_the_branch() -> None:
    """Bytes that autograd keeps, GELAN-S of 128 pixels: with it at most three times as many."""
    main, x = gelan("s"), torch.rand(2, 3, 128, 128)

    def kept(network: Any) -> int:
        with SavedForBackward(network.parameters()) as saved:
            found = network(x)
        del found
        return saved.peak

    alone, both = kept(main), kept(Pgi(main, "icn"))
    print(f"\nGELAN-S keeps {alone / 1e6:.0f} MB, with the branch {both / alone:.2f} times")
    assert alone < both < 3 * alone
