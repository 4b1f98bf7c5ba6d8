"""GELAN detectors (Wang, Yeh and Liao, "YOLOv9", 2024, arXiv 2402.13616), from T to E."""

from repro.models.vision.gelan.blocks import CBLinear, RepConv, fuse
from repro.models.vision.gelan.head import DetectionHead, Predictions
from repro.models.vision.gelan.network import SIZES, Gelan, TopDown, gelan

__all__ = [
    "SIZES",
    "CBLinear",
    "DetectionHead",
    "Gelan",
    "Predictions",
    "RepConv",
    "TopDown",
    "fuse",
    "gelan",
]
