"""What tests of several rooms share: the toy paper, kept outside the project's own folders."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads wait longer for each other than they help

import torch

from repro.training.startup import import_lightning

SUPPORT = Path(__file__).parent / "support"
TOY_CONFIG = SUPPORT / "toy_project" / "conf"

# Test modules are loaded by path, so their helpers (and the toy's room) need a place to come from.
sys.path.insert(0, str(SUPPORT))
import_lightning()  # before a test module does, which takes twice as long


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports a million objects that stay, and the garbage collector looks at none of them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests of one paper, or of one file, on one worker: they share what is made once."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        group = parameters.get("slug", item.path.stem.removeprefix("test_"))
        item.add_marker(pytest.mark.xdist_group(str(group)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in a line what came of `make torture`."""
    import torture

    if torture.IS_LONG and torture.figures:
        said = ", ".join(f"{well}/{all_} {kind}" for kind, (well, all_) in torture.figures.items())
        terminalreporter.write_line(f"torture: {said}")


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """Whatever a test starts ends with it."""
    yield
    if "processes" in sys.modules:
        sys.modules["processes"].end_all()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes the toy paper known, and an empty folder the current one; returns the folder."""
    monkeypatch.setenv("REPRO_CONFIG_DIR", str(TOY_CONFIG))
    monkeypatch.delenv("TOY_EVENT", raising=False)
    monkeypatch.delenv("REPRO_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Computes on one thread: several wait for each other longer than small tensors take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def wide_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands print in this process is as wide as where nobody says how wide."""
    from repro.cli import render  # needed by few tests

    monkeypatch.setattr(render.console, "width", render.WIDE)
