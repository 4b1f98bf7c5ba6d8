"""All benchmarks compute on one thread, from the same random numbers, and carry their mark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.benchmark)


@pytest.fixture(autouse=True)
def _alike(one_thread: None) -> None:
    torch.manual_seed(0)
