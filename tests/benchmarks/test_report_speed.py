"""How long `repro status` and `repro report` take over 10,000 run directories."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fake_outputs import claim, make_study

from repro.claims.outcomes import Verdict

START = datetime(2026, 1, 1)
SCALES = ("smoke", "mini", "full")


def hundred_studies(outputs: Path) -> None:
    """25 papers, 100 studies, 10 arms, 10 seeds."""
    verdicts = [claim(f"C{n}", verdict) for n, verdict in enumerate(Verdict)]
    for number in range(100):
        make_study(
            outputs,
            paper=f"paper{number % 25:02d}",
            scale=SCALES[number // 25 % 3],
            created=START + timedelta(hours=number),
            arms=[f"arm{arm}" for arm in range(10)],
            seeds=10,
            verdicts=verdicts,
        )


def single_runs(outputs: Path) -> None:
    """10,000 studies of one run each."""
    for number in range(10_000):
        make_study(outputs, created=START + timedelta(minutes=number), arms=["dense"], seeds=1)


def one_grid(outputs: Path) -> None:
    """One study with 1,000 arms and 10 seeds."""
    make_study(outputs, arms=[f"arm{arm}" for arm in range(1000)], seeds=10)


@pytest.mark.parametrize("fill", [hundred_studies, single_runs, one_grid])
def test_ten_thousand_run_directories(fill: object, tmp_path: Path) -> None:
    assert callable(fill)
    fill(tmp_path / "outputs")
    assert seconds(tmp_path, "status") <= 2
    assert seconds(tmp_path, "report", "--html", "report.html", "--markdown", "report.md") <= 10
    print(f"the page: {(tmp_path / 'report.html').stat().st_size / 1e6:.1f} MB")


def seconds(folder: Path, *arguments: str) -> float:
    command = [str(Path(sys.executable).parent / "repro"), *arguments]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    took = time.perf_counter() - start
    print(f"\nrepro {arguments[0]}: {took:.2f} s")
    return took
