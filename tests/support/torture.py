"""How much of the tests by accident is done: a little in `make test`, all in `make torture`."""

from __future__ import annotations

import os

import pytest

IS_LONG = os.environ.get("REPRO_TORTURE") == "1"
figures: dict[str, list[int]] = {}  # how often what went well, and was tried

torture = pytest.mark.torture


def tries(short: int, long: int) -> int:
    """How often something is tried."""
    return long if IS_LONG else short


def note(kind: str, well: int, tried: int) -> None:
    """Adds to the figures that `make torture` says at its end."""
    counts = figures.setdefault(kind, [0, 0])
    counts[0] += well
    counts[1] += tried
