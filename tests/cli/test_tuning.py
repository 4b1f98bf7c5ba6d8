"""`repro show SLUG --tuning`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from repro.cli.main import cli

from repro.records.papers import Paper


def show(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["show", "toy", "--tuning", *arguments])


@pytest.fixture
def tuning(toy: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the toy was tuned over."""
    file = toy / "tuning.json"
    monkeypatch.setattr(Paper, "tuning_file", file)
    content = {
        "judged": "val/loss; less is better",
        "average": "geometric",
        "seeds": [100, 101],
        "note": "with [brackets]",
        "grids": [
            {
                "name": "sgd",
                "tries": [
                    {"settings": {"lr": 0.1}, "values": {"100": 1.0, "101": 4.0}, "chosen": True},
                    {"settings": {"lr": 1.0}, "mean": 5.0, "seeds": [100]},
                ],
            },
            {
                "name": "tuned",
                "judged": "val/accuracy; more is better",
                "tries": [{"settings": {"lr": 0.1, "width": 8}, "mean": 0.5, "chosen": True}],
            },
        ],
    }
    file.write_text(json.dumps(content))
    return content


def test_tries_are_shown_and_which_was_chosen(tuning: dict[str, Any]) -> None:
    result = show()
    assert result.exit_code == 0, result.output
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "By val/loss; less is better; seeds 100, 101; geometric means.",
        "with [brackets]",
        "arm, lr (¹: number of seeds) 0.1 1",
        "sgd 2 * 5 ¹",
        "",
        "val/accuracy; more is better",
        "tuned",
        "lr 0.1, width 8: 0.5 *",
        "",
        "*: chosen",
    ]


def test_json_is_what_the_file_holds(tuning: dict[str, Any]) -> None:
    result = show("--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == tuning


def test_a_paper_without_tries_is_told_so(toy: Path) -> None:
    result = show()
    assert result.exit_code == 2
    assert "tuning.json does not exist" in result.stderr
