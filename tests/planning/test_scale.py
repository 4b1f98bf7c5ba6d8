"""Thousands of runs: what is taken over from one run to the next is what each would resolve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_outputs import make_study, update_json
from omegaconf import DictConfig

from repro.launching.queue import count_statuses
from repro.planning import compose, plan
from repro.records.papers import load_paper
from repro.records.run import Run, RunRecord
from repro.records.status import Status
from repro.records.study import Study, typical_seconds


@pytest.mark.parametrize(
    "typed",
    [
        ["paper=dgc", "arm=dgc"],
        ["paper=gsae", "arm=digits_net"],
        ["paper=toy", "arm=sgd", "+x='run-${seed}'", "+y=[${seed},{a:${seed}}]", "+z=${seed}"],
        ["paper=toy", "arm=sgd", "+t={k3:c,k4:d,k9:e}", "+k='k${seed}'", "+x='${t.${k}}'"],
        ["paper=toy", "arm=sgd", "+t={a:${seed}}", "+x='${t.a} of them'", "+nan=.nan"],
    ],
)
def test_seeds_that_are_filled_in_give_the_configs_that_are_resolved(
    toy: Path, typed: list[str]
) -> None:
    seeds = [3, 4, 9]
    together = plan.plan_study([*typed, f"seeds={seeds}"]).runs
    for seed, run in zip(seeds, together, strict=True):
        (alone,) = plan.plan_study([*typed, f"seeds=[{seed}]"]).runs
        assert repr(run.content) == repr(alone.content)


def test_most_configs_are_not_resolved(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = []
    resolve = compose.resolve

    def counting(config: DictConfig) -> dict[str, Any]:
        resolved.append(config)
        return resolve(config)

    monkeypatch.setattr(compose, "resolve", counting)
    plan.plan_study(["paper=dgc", "arm=dgc", "seeds=[0,1,2,3,4,5,6,7]"])
    assert len(resolved) == 2


def test_planning_looks_at_few_earlier_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(make_study(tmp_path, seeds=1))
    for number in range(20):
        (study.folder.parent / f"2026-02-01_00-00-{number:02d}").symlink_to(study.folder)
    read = []
    record = Run.record

    def counting(run: Run) -> RunRecord:
        read.append(run)
        return record(run)

    monkeypatch.setattr(Run, "record", counting)
    assert typical_seconds(load_paper("dgc"), "mini", tmp_path) == {"dense": 2.5, "dgc": 2.5}
    assert len(read) <= 10


def test_ends_are_counted_without_reading_all_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(make_study(tmp_path, seeds=5))
    update_json(study.runs[0].record_file, status="diverged")
    update_json(study.runs[1].record_file, status="waiting")
    study.runs[2].record_file.write_text("{}")
    assert [study.runs[number].end() for number in (0, 1, 2, 3)] == [
        Status.DIVERGED, None, None, Status.FINISHED,
    ]  # fmt: skip
    del study.about.layers[0][2]
    assert count_statuses(study.runs) == {"waiting": 1, "finished": 7, "diverged": 1}
