"""The machine, as far as it matters to timings."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Processor, cores, threads in use, and the names of the GPUs if there are any."""
    found: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found
