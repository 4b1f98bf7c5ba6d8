"""Missing data and packages are found for all arms at once, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from repro.cli.main import cli

from repro.launching import needs
from repro.planning import extras
from repro.planning.plan import plan_study

TYPED = ("scale=smoke", "arm=[sgd,adam,tuned]", "seeds=[0,1]")


def call(*typed: str) -> Result:
    return CliRunner().invoke(cli, ["run", "paper=toy", *TYPED, *typed])


def test_nothing_is_said_where_nothing_is_missing(toy: Path) -> None:
    assert needs.lacking(plan_study(["paper=toy", *TYPED])) is None


def test_missing_data_are_one_line_and_nothing_is_started(toy: Path) -> None:
    result = call("dataset=mnist", "data.root=nowhere")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("repro: Nothing can run: Data set 'mnist' is missing: no nowhere/")
    assert "Fetch it (18 MB) with `repro data fetch mnist`" in line
    assert not Path("outputs").exists()


def test_a_dry_run_says_so_too(toy: Path) -> None:
    result = call("dataset=mnist", "data.root=nowhere", "--dry-run")
    assert result.exit_code == 0
    assert "6 runs" in result.stdout
    assert "is missing: no nowhere/" in result.stderr


@pytest.mark.parametrize("typed", [("paper=dgc", "dataset=mnist"), ("paper=nngp_mixture",)])
def test_a_rehearsal_needs_no_data(toy: Path, typed: tuple[str, ...]) -> None:
    lacking = [*typed, "scale=full", "data.root=nowhere", "--dry-run"]
    for rehearsed, missing in ((), True), (("--rehearse",), False):
        result = CliRunner().invoke(cli, ["run", *lacking, *rehearsed])
        assert result.exit_code == 0
        assert ("is missing" in result.stderr) is missing


def test_packages_are_named_with_what_brings_them(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extras.find_spec
    monkeypatch.setattr(
        "repro.planning.extras.find_spec", lambda name: None if name == "mpe2" else found(name)
    )
    plan = plan_study(["paper=toy", *TYPED, "needs=[mpe2,json,none_such]"])
    assert needs.lacking(plan) == (
        "Nothing can run: mpe2 is not installed. Get it with: pip install 'gradient-repro[mpe]' "
        "Nothing can run: none_such is not installed. Get it with: pip install none_such"
    )


def test_the_arms_that_lack_something_are_named(toy: Path) -> None:
    arms = "++arms.far=['dataset=mnist','dataset.root=nowhere']"
    plan = plan_study(["paper=toy", "scale=smoke", "arm=[sgd,far]", "seed=0", arms])
    said = needs.lacking(plan)
    assert said is not None
    assert said.startswith("1 of 2 arms (far) cannot run: Data set 'mnist' is missing")


def test_of_a_large_corpus_only_the_shards_that_are_read_have_to_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "Skylion007" / "openwebtext" / "plain_text"
    folder.mkdir(parents=True)
    for shard in range(2):
        (folder / f"train-0000{shard}-of-00080.parquet").touch()
    typed = ["paper=lanton", "scale=full", "arm=adamw", "seed=0", f"data.root={tmp_path}"]
    assert needs.lacking(plan_study([*typed, "dataset.shards=2"])) is None
    said = needs.lacking(plan_study([*typed, "dataset.shards=3"]))
    assert said is not None
    assert "incomplete: 2 of 80 files" in said
