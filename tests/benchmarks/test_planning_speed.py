"""Planning thousands of runs takes little, and planning a few beside thousands nothing more."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fake_outputs import make_study

REPRO = str(Path(sys.executable).parent / "repro")
FIVE_THOUSAND = r"""
import pathlib, re, sys
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
seeds = ",".join(map(str, range(500)))
arms = "dense,dropping,dropping_warmup,dropping_tuned,dgc,dgc_no_masking,dgc_no_warmup,dgc_neither"
plan = plan_study(["paper=dgc", f"arm=[{arms},random_k,terngrad]", f"seeds=[{seeds}]"])
create_study(plan, pathlib.Path(sys.argv[1]))
# Not getrusage's number, which a process inherits from the one that started it.
peak = re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
print(len(plan.runs), peak[1])
"""


def seconds(*typed: str) -> float:
    """The least time of three, as a user waits for it."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([REPRO, *typed], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_earlier_runs_cost_planning_nothing(tmp_path: Path) -> None:
    make_study(tmp_path / "many", arms=list("abcdefghij"), seeds=10)
    (study,) = tmp_path.glob("many/*/*/*")
    for number in range(199):
        (study.parent / f"2026-03-01_{number:06d}").symlink_to(study)
    dry = ("run", "--dry-run", "paper=dgc", "arm=dgc")
    beside, alone = (seconds(*dry, f"outputs={tmp_path / name}") for name in ("many", "none"))
    print(f"\nplanning beside 20,000 runs: {beside:.2f} s, alone {alone:.2f} s")
    assert beside <= alone + 0.5


def test_five_thousand_runs_are_planned_in_a_minute(tmp_path: Path) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-c", FIVE_THOUSAND, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took = time.perf_counter() - start
    runs, kilobytes = map(int, said.split())
    print(f"\nplanning and preparing {runs} runs: {took:.0f} s, {kilobytes / 1e6:.2f} GB")
    assert runs == 5000
    assert took <= 60
    assert kilobytes <= 1e6
