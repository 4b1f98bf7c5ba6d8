"""run.json and study.json: typed when read, in order when written, one writer at a time."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fake_outputs import make_study, update_json

from repro.errors import UserError
from repro.records import series
from repro.records.run import Failure, Run
from repro.records.status import Status
from repro.records.study import Study

UPDATES = 50


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.open(make_study(tmp_path, seeds=1))


@pytest.fixture
def run(study: Study) -> Run:
    return study.runs[0]


def content(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text())
    read.pop("checksum", None)
    return read


def test_what_is_written_is_read_by_its_names(study: Study, run: Run) -> None:
    record = run.record()
    assert (record.arm, record.seed, record.status) == ("dense", 0, Status.FINISHED)
    assert record.code.commit == "0123456789ab"
    assert record.started is None  # versions of the past wrote less
    assert study.about.layers == [["dense/seed=0", "dgc/seed=0"]]
    assert study.about.twins == {}


def test_an_update_changes_its_keys_and_no_others(run: Run) -> None:
    update_json(run.record_file, of_a_later_version={"a": [1, None]})
    before = content(run.record_file)
    run.update(status=Status.FAILED, error=Failure(message="It broke."), trial=3)
    after = content(run.record_file)
    assert after.pop("trial") == 3
    assert after == before | {"status": "failed", "error": {"message": "It broke."}}
    assert list(after) == list(before)


def test_records_are_written_as_they_were_read(study: Study, run: Run) -> None:
    for owner in (study, run):
        before = content(owner.record_file)
        owner.update()
        assert list(content(owner.record_file).items()) == list(before.items())


def test_a_misspelt_key_is_a_fault_of_the_program(study: Study, run: Run) -> None:
    for owner in (study, run):
        with pytest.raises(TypeError, match="has no statsu"):
            owner.update(statsu="finished")


def test_a_damaged_record_is_named_in_a_line(run: Run) -> None:
    update_json(run.record_file, seed="first")
    with pytest.raises(UserError, match=r"run\.json cannot be read: seed: ") as error:
        run.record()
    assert "\n" not in str(error.value)
    update_json(run.record_file, seed=0)
    run.summary_file.write_text('{"test/loss": {}}')
    with pytest.raises(UserError, match=r"summary\.json cannot be read: test/loss: "):
        run.summary()


def _write(folder: Path, key: str) -> None:
    for number in range(UPDATES):
        Run(folder).update(**{key: number})


def test_two_writers_lose_nothing(run: Run) -> None:
    keys = ("attempts", "pid")
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        list(pool.map(_write, [run.folder] * 2, keys))
    assert [content(run.record_file)[key] for key in keys] == [UPDATES - 1] * 2
    assert not list(run.folder.glob(".*"))


def test_a_run_knows_its_study(study: Study, run: Run, tmp_path: Path) -> None:
    assert Study.around(run.folder).folder == study.folder
    with pytest.raises(UserError, match="belongs to no study"):
        Study.around(tmp_path)


def test_the_config_can_be_read_without_omegaconf(run: Run) -> None:
    plain = run.plain_config()
    assert (plain["arm"], plain["training"]["epochs"]) == ("dense", 30)
    run.config_file.write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        run.plain_config()


def test_a_series_has_the_metrics_that_are_wanted(run: Run) -> None:
    rows = series.read_series(run.series_file, ["val/loss", "test/loss", "none"])
    assert len(rows) == 30
    assert all(row.keys() == {"step", "epoch", "val/loss"} for row in rows)
    assert isinstance(rows[0]["step"], int)


def test_a_damaged_series_is_read_up_to_the_damage_only_on_demand(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    for damage in ("5,oops\n", "5\n"):
        file.write_text(f"step,loss\n1,0.5\n2,\n{damage}6,0.1\n")
        with pytest.raises(ValueError, match=r"oops|cells are missing"):
            series.read_series(file)
        assert series.read_series(file, up_to_damage=True) == [
            {"step": 1, "loss": 0.5},
            {"step": 2},
        ]
    assert series.read_series(tmp_path / "none.csv") == []
