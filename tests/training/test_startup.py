"""Lightning is imported without what nobody uses, and torchmetrics is what everybody else finds."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNUSED = ("scipy.signal", "transformers")
START = "import sys\nfrom repro.training.startup import import_lightning\nimport_lightning()\n"


def printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240
    )
    return done.stdout.strip()


def test_what_nobody_uses_is_not_imported() -> None:
    assert printed(START + f"print([name for name in {UNUSED} if name in sys.modules])") == "[]"


ROOT = "import torchmetrics\ntorchmetrics.functional.mean_squared_error"
OTHERS = """
from torchmetrics import MeanMetric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal import CLIPScore  # which transformers brings
mean = MeanMetric()
mean.update(2.0)
mean.plot()
"""
LOOK = """
import torchmetrics, lightning.pytorch as pl
from torchmetrics.utilities import imports
flags = sorted(f"{k} {bool(v)}" for k, v in vars(imports).items() if k.endswith("_AVAILABLE"))
from lightning.pytorch.core import module as its
same = its.Metric is torchmetrics.Metric, its.MetricCollection is torchmetrics.MetricCollection
private = {"__builtins__", "__cached__", "__file__", "__loader__", "__spec__"}
print(type(torchmetrics).__name__, same, flags, sorted(set(vars(torchmetrics)) - private))
"""


@pytest.mark.parametrize("use", [ROOT, OTHERS], ids=["root", "others"])
def test_torchmetrics_is_the_one_that_everybody_else_finds(use: str) -> None:
    ours, theirs = printed(START + use + LOOK), printed("import sys\n" + use + LOOK)
    assert ours == theirs
    assert ours.startswith("module (True, True)")
