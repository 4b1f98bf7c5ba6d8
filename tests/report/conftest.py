from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from repro.cli.main import cli

Report = Callable[..., Result]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """Runs ``repro report`` with the temporary folder as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPRO_CONFIG_DIR", "")
    return lambda *arguments: CliRunner().invoke(cli, ["report", *arguments])
