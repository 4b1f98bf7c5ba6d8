"""Tests of one paper run on one worker, so that its smoke study is made once."""

from __future__ import annotations

import pytest


def test_groups_reach_the_workers(request: pytest.FixtureRequest) -> None:
    """What says so is private to pytest and pytest-xdist, and has changed unannounced."""
    by_group = bool(request.config.getoption("loadgroup", False))
    assert request.node.nodeid.endswith("@workers") == by_group
