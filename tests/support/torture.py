"""How much of the tests by accident is done: a little in `make test`, all in `make torture`."""

from __future__ import annotations

import os

import pytest

IS_LONG = os.environ.get("REPRO_TORTURE") == "1"
figures: dict[str, str] = {}  # what `make torture` says at its end, by kind of accident

torture = pytest.mark.torture


def tries(short: int, long: int) -> int:
    """How often something is tried."""
    return long if IS_LONG else short


def note(kind: str, well: int, tried: int) -> None:
    """Notes how often something went well."""
    figures[kind] = f"{well}/{tried}"
