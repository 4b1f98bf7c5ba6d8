"""The one-node Slurm that start_slurm.sh started; without it, these tests are deselected."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.launching import slurm
from repro.launching.queue import jobs_of
from repro.records.study import Study

SUPPORT = Path(__file__).parents[1] / "support"
CONFIG = Path(os.environ.get("REPRO_TEST_SLURM", "/tmp/repro-test-slurm")) / "slurm.conf"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that need Slurm where it does not run."""
    mine = [item for item in items if item.get_closest_marker("slurm")]
    if mine and not _slurm_runs():
        config.hook.pytest_deselected(items=mine)
        items[:] = [item for item in items if item not in mine]


def _slurm_runs() -> bool:
    try:
        environment = {**os.environ, "SLURM_CONF": str(CONFIG)}
        subprocess.run(["sinfo"], env=environment, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


@pytest.fixture
def cluster(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder from which studies can be submitted; their jobs know the toy paper."""
    monkeypatch.setenv("SLURM_CONF", str(CONFIG))
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    yield toy
    # Those of a test that failed would keep the others waiting.
    for study in (Study(file.parent) for file in toy.glob("*/*/*/*/study.json")):
        slurm.cancel(jobs_of(study.runs))
