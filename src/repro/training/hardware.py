"""The machine, as far as it matters to timings."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Processor, cores, threads in use, and the names of the GPUs if there are any."""
    found: dict[str, Any] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def processor() -> str:
    """The name of the processor, or of its kind where the system keeps it to itself."""
    listed = Path("/proc/cpuinfo")  # of Linux, where `platform` does not look
    text = listed.read_text(encoding="utf-8") if listed.exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.M)
    return named[1] if named else platform.processor() or platform.machine()
