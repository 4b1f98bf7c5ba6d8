"""Object detection: boxes, suppression, assignment, losses, average precision."""

from repro.toolbox.detection.assignment import Assignment, task_aligned
from repro.toolbox.detection.average_precision import AveragePrecision
from repro.toolbox.detection.boxes import ciou, iou, suppress
from repro.toolbox.detection.detections import Detections, detect
from repro.toolbox.detection.losses import DetectionLoss, LossParts, distance_loss

__all__ = [
    "Assignment",
    "AveragePrecision",
    "DetectionLoss",
    "Detections",
    "LossParts",
    "ciou",
    "detect",
    "distance_loss",
    "iou",
    "suppress",
    "task_aligned",
]
