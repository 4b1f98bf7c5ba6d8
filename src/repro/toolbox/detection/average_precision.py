"""Average precision as COCO defines it, in NumPy: the numbers of pycocotools, without its files.

Shapes: D detections and G objects of one class in one image, T = 10 overlap thresholds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from repro.toolbox.detection.boxes import area, overlap
from repro.toolbox.detection.detections import Detections

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of an image and class that count
AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2),
         "_large": (96.0**2, 1e10)}  # fmt: skip


@dataclass
class _Class:
    """What was seen of one class and one range of areas, over images."""

    scores: list[np.ndarray] = field(default_factory=list)
    matched: list[np.ndarray] = field(default_factory=list)  # (T, D): true positives
    ignored: list[np.ndarray] = field(default_factory=list)  # (T, D): neither right nor wrong
    objects: int = 0


class AveragePrecision:
    """Collects detections and objects image by image; `compute` averages over classes.

    Examples:
        >>> box, one = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([0])
        >>> metric = AveragePrecision()
        >>> metric.add(Detections(box, torch.tensor([0.9]), one), box, one)
        >>> float(round(metric.compute()["ap"], 6))
        1.0
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], _Class] = defaultdict(_Class)

    def add(
        self,
        found: Detections,
        boxes_G4: Tensor,
        labels_G: Tensor,
        crowd_G: Tensor | None = None,
        area_G: Tensor | None = None,
    ) -> None:
        """Adds an image.

        Args:
            found: its detections.
            boxes_G4: its objects.
            labels_G: their classes.
            crowd_G: whether an object stands for many: detections within it are not wrong.
            area_G: their areas, which decide whether they are small; None: those of the boxes.
        """
        found = Detections(*(tensor.detach().cpu().double() for tensor in found))
        boxes_G4, labels_G = boxes_G4.cpu().double(), labels_G.cpu()
        crowds = torch.zeros(len(boxes_G4)) if crowd_G is None else crowd_G.cpu()
        areas = area(boxes_G4) if area_G is None else area_G.cpu().double()
        for label in {*labels_G.tolist(), *found.labels.long().tolist()}:
            mine, theirs = found.labels == label, labels_G == label
            order = found.scores[mine].argsort(descending=True, stable=True)[:MOST]
            boxes_D4, scores_D = found.boxes[mine][order], found.scores[mine][order].numpy()
            crowd = crowds[theirs].bool()
            shared_DG = _shared(boxes_D4, boxes_G4[theirs], crowd).numpy()
            for name, (low, high) in AREAS.items():
                size_G, size_D = areas[theirs].numpy(), area(boxes_D4).numpy()
                ignored_G = crowd.numpy() | (size_G < low) | (size_G > high)
                partner_TD = _matches(shared_DG, crowd.numpy(), ignored_G)
                is_ignored = np.append(ignored_G, False)[partner_TD]
                outside = (partner_TD < 0) & ((size_D < low) | (size_D > high))
                seen = self.seen[int(label), name]
                seen.scores.append(scores_D)
                seen.matched.append((partner_TD >= 0) & ~is_ignored)
                seen.ignored.append(is_ignored | outside)
                seen.objects += int((~ignored_G).sum())

    @classmethod
    def merged(cls, parts: Iterable[AveragePrecision]) -> AveragePrecision:
        """What several processes collected, as one.

        Args:
            parts: each of other images.
        """
        whole = cls()
        for part in parts:
            for key, theirs in part.seen.items():
                mine = whole.seen[key]
                mine.scores += theirs.scores
                mine.matched += theirs.matched
                mine.ignored += theirs.ignored
                mine.objects += theirs.objects
        return whole

    def compute(self) -> dict[str, float]:
        """``ap`` (over thresholds from 0.5 to 0.95), ``ap50``, ``ap75``, ``ap_small`` and so on.

        A range of areas in which there is no object has none: NaN.
        """
        found = {}
        for name in AREAS:
            classes = [c for (_, area), c in self.seen.items() if area == name and c.objects]
            precision_KT = np.stack([_precision(c) for c in classes] or [np.full(10, np.nan)])
            found[f"ap{name}"] = float(precision_KT.mean())
            if not name:
                found["ap50"], found["ap75"] = (float(precision_KT[:, t].mean()) for t in (0, 5))
        return found


def _shared(boxes_D4: Tensor, boxes_G4: Tensor, crowd_G: Tensor) -> Tensor:
    """Intersection over union (D, G); over the detection alone, where the object is a crowd."""
    both_DG = overlap(boxes_D4[:, None], boxes_G4)
    mine_D1 = area(boxes_D4)[:, None]
    union_DG = mine_D1 + area(boxes_G4) - both_DG
    return both_DG / torch.where(crowd_G, mine_D1, union_DG).clamp(min=1e-12)


def _matches(shared_DG: np.ndarray, crowd_G: np.ndarray, ignored_G: np.ndarray) -> np.ndarray:
    """The object (T, D) that each detection gets, the best first; −1: none.

    A detection takes the object that it overlaps most of those that are left, one that is not
    ignored before any that is; of equal ones the last. A crowd can be taken again and again.
    """
    detections, objects = shared_DG.shape
    partner_TD = np.full((len(THRESHOLDS), detections), -1)
    if not objects:
        return partner_TD
    order = np.argsort(ignored_G, kind="stable")
    shared_DG, crowd_G, ignored_G = shared_DG[:, order], crowd_G[order], ignored_G[order]
    thresholds_T1 = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free_TG = np.ones((len(THRESHOLDS), objects), dtype=bool)
    for number in np.flatnonzero(shared_DG.max(1) >= THRESHOLDS[0]):
        can_TG = (free_TG | crowd_G) & (shared_DG[number] >= thresholds_T1)
        counted_TG = can_TG & ~ignored_G
        can_TG = np.where(counted_TG.any(1, keepdims=True), counted_TG, can_TG)
        score_TG = np.where(can_TG, shared_DG[number], -1)
        best_T = objects - 1 - score_TG[:, ::-1].argmax(1)
        hit_T = can_TG.any(1)
        free_TG[hit_T, best_T[hit_T]] = False
        partner_TD[hit_T, number] = order[best_T[hit_T]]
    return partner_TD


def _precision(seen: _Class) -> np.ndarray:
    """The mean precision over 101 recalls, for each threshold (T,)."""
    order = np.argsort(-np.concatenate(seen.scores), kind="mergesort")
    matched, ignored = (np.concatenate(part, 1)[:, order] for part in (seen.matched, seen.ignored))
    right, wrong = (np.cumsum(hit & ~ignored, 1) for hit in (matched, ~matched))
    found = np.zeros(len(THRESHOLDS))
    for at in range(len(THRESHOLDS)):
        recall = right[at] / seen.objects
        precision = right[at] / np.maximum(right[at] + wrong[at], 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS, side="left")
        found[at] = np.append(envelope, 0)[places].mean()
    return found
