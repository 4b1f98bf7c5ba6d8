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


FORKED = """
import os, traceback
for code in {codes}:
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            exec(code, {{}})
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def ours() -> list[str]:
    """What is there after `import_lightning`: what nobody uses, then what each use finds."""
    unused = f"print([name for name in {UNUSED} if name in sys.modules])\n"
    return printed(START + unused + FORKED.format(codes=[ROOT + LOOK, OTHERS + LOOK])).splitlines()


def test_what_nobody_uses_is_not_imported(ours: list[str]) -> None:
    assert ours[0] == "[]"


def test_torchmetrics_is_the_one_that_everybody_else_finds(ours: list[str]) -> None:
    theirs = printed(ROOT + LOOK + OTHERS + LOOK).splitlines()
    assert ours[1:] == theirs
    assert len(theirs) == 2
    assert all(line.startswith("module (True, True)") for line in theirs)
