"""`repro show SLUG --power`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from repro.cli.main import cli

from repro.records.papers import Paper


def show(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["show", "toy", "--power", *arguments])


@pytest.fixture
def record(toy: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is recorded of the toy's three seeds at scale=mini: nearly, but not quite, enough."""
    monkeypatch.setattr(Paper, "results_file", lambda _, scale: toy / f"{scale}.json")
    accuracies = {"sgd": (0.90, 0.92, 0.91), "tuned": (0.90, 0.86, 0.90)}
    content = {
        "claims": [],
        "runs": [
            {"arm": arm, "seed": seed, "status": "finished", "metrics": {"test/accuracy": value}}
            for arm, values in accuracies.items()
            for seed, value in enumerate(values)
        ],
    }
    (toy / "mini.json").write_text(json.dumps(content))
    return content


def test_a_row_for_every_check_of_every_recorded_scale(record: dict[str, Any]) -> None:
    result = show("--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found) == ["mini"]
    (row,) = found["mini"]
    assert (row["claim"], row["verdict"], row["seeds"]) == ("T1", "inconclusive", 3)
    assert row["effect"] == pytest.approx(-0.07 / 3)
    assert row["detectable"] > row["high"] - row["effect"]
    assert row["seeds_needed"] > 3


def test_the_table_says_what_was_measured_and_what_it_takes(record: dict[str, Any]) -> None:
    result = show()
    assert result.exit_code == 0, result.output
    assert "toy at scale=mini" in result.stdout
    assert "no loss (inferred)" in result.stdout
    assert "? −0.02 [" in result.stdout
    assert "to decide" in result.stdout


def test_a_paper_without_records_says_how_to_make_one(toy: Path) -> None:
    result = show()
    assert result.exit_code == 2
    assert "Run it: repro run paper=toy, then repro record paper=toy." in result.stderr


def test_what_is_not_recorded_any_more_is_shown_as_it_was_judged(
    toy: Path, record: dict[str, Any]
) -> None:
    """As checks of curves are, of which a record holds none."""
    (row,) = json.loads(show("--json").stdout)["mini"]
    known = {key: row[key] for key in row if key not in ("claim", "paper", "detectable")}
    claim = {
        "id": "T1",
        "statement": "It works.",
        "where": "nowhere",
        "paper": {"value": "x", "source": "read"},
        "verdict": "inconclusive",
        "checks": [known],
    }
    (toy / "mini.json").write_text(json.dumps({"claims": [claim], "runs": []}))
    (again,) = json.loads(show("--json").stdout)["mini"]
    assert again == row | {"detectable": None}
