"""How long a user waits for the study that `make run` shows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def test_dgc_mini_with_three_seeds_takes_at_most_ninety_seconds(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "repro"),
        "run",
        "paper=dgc",
        "seeds=[0,1,2]",
        "-q",
    ]
    start = time.perf_counter()
    subprocess.run([*command, f"outputs={tmp_path}"], check=True, cwd=tmp_path)
    seconds = time.perf_counter() - start
    print(f"\nrepro run paper=dgc, three seeds, all arms and verdicts: {seconds:.0f} s")
    assert seconds <= 90
