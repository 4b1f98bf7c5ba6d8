"""`repro verify`: a record is run again, or compared with a study that there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from repro.cli.main import cli

from repro.claims.studies import read_verdicts, recorded_claims
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import Paper, load_paper
from repro.records.study import Study, find_studies
from repro.report import record as recording

TYPED = ["paper=toy", "scale=smoke", "arm=[sgd,tuned]", "training.epochs=1", "n_jobs=1"]


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["verify", "toy", *arguments])


@pytest.fixture(autouse=True)
def _records_stay_here(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paper, "results_file", lambda _, scale: toy / "results" / f"{scale}.json")
    monkeypatch.setattr(recording, "project_readme", lambda: toy / "README.md")
    monkeypatch.setattr(recording, "draw_study", lambda _: [])


@pytest.fixture
def recorded(toy: Path) -> Study:
    """A study of the toy at scale=smoke that nobody had to run, and its record."""
    study = create_study(plan_study(TYPED), toy / "outputs")
    for run, accuracy in zip(study.runs, (0.90, 0.91, 0.92, 0.91), strict=True):
        run.update(status="finished", seconds=1.0)
        run.summary_file.write_text(json.dumps({"test/accuracy": accuracy}))
    recording.record({}, toy / "outputs", study.folder)
    return study


def edit(toy: Path, **fields: Any) -> None:
    """Changes the recorded check."""
    file = toy / "results" / "smoke.json"
    content = json.loads(file.read_text())
    content["claims"][0]["checks"][0] |= fields
    file.write_text(json.dumps(content))


def test_a_record_that_is_run_again_agrees() -> None:
    assert CliRunner().invoke(cli, ["run", *TYPED, "-q"]).exit_code == 0
    (study,) = find_studies(Path("outputs"))
    recording.record({}, Path("outputs"), study.folder)
    result = verify("--scale", "smoke", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (claim,) = found["claims"]
    assert (claim["id"], claim["outcome"]) == ("T1", "agrees")
    again = Study.open(Path(found["folder"]))
    assert again.folder != study.folder
    assert [run.summary()["test/loss"] for run in again.runs] == [
        run.summary()["test/loss"] for run in study.runs
    ]


def test_what_differs_is_named_and_ends_with_1(toy: Path, recorded: Study) -> None:
    edit(toy, effect=0.7, low=0.6, high=0.8)
    result = verify(str(recorded.folder))
    assert result.exit_code == 1, result.output
    assert "differs: tuned − sgd" in " ".join(result.stdout.split())
    assert not recorded.verdicts_file.exists()  # it is only looked at


def test_a_fresh_study_carries_the_recorded_values(toy: Path, recorded: Study) -> None:
    edit(toy, effect=0.7)
    assert CliRunner().invoke(cli, ["resume", str(recorded.folder), "-q"]).exit_code == 0
    (claim,) = read_verdicts(recorded)
    (old,) = recorded_claims(load_paper("toy"), "smoke")
    assert claim.recorded is old.verdict
    assert claim.checks[0].recorded is not None
    assert claim.checks[0].recorded.effect == 0.7
    recording.record({}, Path("outputs"), recorded.folder)
    (fresh,) = recorded_claims(load_paper("toy"), "smoke")
    assert fresh.recorded is None  # a record compares with no older one


def test_a_record_names_the_code_that_ran(toy: Path, recorded: Study) -> None:
    code = json.loads((toy / "results" / "smoke.json").read_text())["code"]
    assert code["sha256"] == recorded.about.code.sha256
    assert code["paper_sha256"] == recorded.about.code.paper_sha256
    assert code.get("commit") == recorded.about.code.commit


def test_mistakes_are_said_in_a_line(toy: Path, recorded: Study) -> None:
    result = verify()
    assert result.exit_code == 2
    assert "Nothing of 'toy' is recorded at scale=mini to compare with." in result.stderr
    result = CliRunner().invoke(cli, ["verify", "dgc", str(recorded.folder)])
    assert result.exit_code == 2
    assert "is recorded at scale=smoke" in result.stderr or "not of dgc" in result.stderr
    recorded.runs[0].update(status="waiting")
    result = verify(str(recorded.folder))
    assert result.exit_code == 2
    assert "is not finished. Finish it first: repro resume" in result.stderr
