"""`repro status` over many studies: the newest ones, and how to see the rest."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

from click.testing import CliRunner
from fake_outputs import make_study
from repro.cli.main import cli


def status(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["status", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_damaged_study_hides_no_other(tmp_path: Path) -> None:
    start = datetime(2026, 1, 1)
    damaged, whole = (
        make_study(tmp_path, created=start + timedelta(hours=hour), arms=["dense"], seeds=1)
        for hour in range(2)
    )
    (damaged / "study.json").write_text("{")
    result = CliRunner().invoke(cli, ["status", "--outputs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert str(whole) in result.stdout.replace("\n", "")
    assert f"left out: {damaged / 'study.json'} cannot be read" in result.stderr


def test_the_newest_thirty_studies_are_listed(tmp_path: Path) -> None:
    start = datetime(2026, 1, 1)
    for hour in range(32):
        make_study(tmp_path, created=start + timedelta(hours=hour), arms=["dense"], seeds=1)
    listed = status("--outputs", str(tmp_path))
    assert "2026-01-02_07" in listed
    assert "2026-01-01_01" not in listed
    assert "… and 2 older studies: repro status --all" in listed
    whole = status("--outputs", str(tmp_path), "--all")
    assert "2026-01-01_00" in whole
    assert "older" not in whole
    assert len(json.loads(status("--outputs", str(tmp_path), "--json"))) == 32
