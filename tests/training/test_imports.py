"""What a process that runs something does not import."""

from __future__ import annotations

import subprocess
import sys

LOOK = """
import sys
from repro.training.imports import UNUSED, import_lightning
import_lightning()
print(*(name for name in UNUSED if name in sys.modules))
import scipy, matplotlib, transformers
from torchmetrics.image.fid import FrechetInceptionDistance
"""


def test_lightning_is_imported_without_what_nobody_uses_and_hides_nothing_afterwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "\n"
