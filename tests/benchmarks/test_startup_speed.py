"""Looking around must be instant: next to Python's own start, and to that of torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import timing
from timing import faster

REPRO = str(Path(sys.executable).parent / "repro")
start = functools.partial(subprocess.run, check=True, capture_output=True)


@pytest.mark.parametrize("verb", ["--help", "list"])
def test_looking_around(verb: str, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(timing.__file__).parent))  # where the toy's room is
    look = functools.partial(start, [REPRO, verb], cwd=toy)
    for code, factor in (("import torch", 4), ("pass", 1 / 30)):
        reference = functools.partial(start, [sys.executable, "-c", code])
        faster(f"repro {verb}, against python -c '{code}'", look, reference, factor, repeats=7)
