"""A rehearsal makes some steps of the real run, resumes, measures, and is no result."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from repro.cli.main import cli
from rooms import prepared

from repro.errors import UserError
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.planning.rehearse import rehearsed
from repro.records.papers import load_paper
from repro.records.rehearsal import Cost, Rehearsal, keep_rehearsal, rehearsal_of
from repro.records.run import Status
from repro.records.study import find_studies, typical_seconds
from repro.report import full_scale, record
from repro.training.execute import execute
from repro.training.supervised import Supervised

SLOW = 60.0  # minutes: no rehearsal here is cut short by the clock


def measured(folder: Path, *typed: str, steps: int = 6) -> list[Rehearsal]:
    """What the rehearsal of each run of a study says."""
    study = create_study(rehearsed(plan_study(typed), steps, SLOW), folder)
    found = []
    for run in study.runs:
        assert execute(run.folder) == Status.FINISHED, run.record().error
        seen = rehearsal_of(run)
        assert seen is not None
        found.append(seen)
    return found


SEEN: dict[str, Any] = {
    "device": "H100", "devices": 2, "precision": "bf16-mixed", "parameters": 1, "steps": 4,
    "resumed": True, "step_ms": 8.0, "wait_ms": 2.0, "samples": 20,
}  # fmt: skip
# Three full scales of different kinds, made tiny; `make rehearsal` does it for all.
TINY = {
    "dgc": ("arm=dgc", "model.depth=8", "model.width=4", "dataset.batch_size=8",
            "dataset.eval_batch_size=8", "dataset.val_size=1000",
            "dataset.info.stand_in={train:6000,test:800}"),
    "lanton": ("arm=lanton", *load_paper("lanton").reduced["full"]),
    "gblm": ("arm=gblm", *load_paper("gblm").reduced["full"]),
}  # fmt: skip


@pytest.mark.parametrize("slug", TINY)
def test_full_scales_rehearse(slug: str, tmp_path: Path) -> None:
    """With nothing to fetch."""
    full = (f"paper={slug}", "scale=full", "hardware=cpu", f"data.root={tmp_path}/none")
    (seen,) = measured(tmp_path, *full, *TINY[slug])
    assert seen.resumed
    assert seen.parameters > 0
    assert seen.step_ms is not None
    assert seen.checkpoint_bytes > 4 * seen.parameters
    assert seen.flops_per_step
    assert seen.hours
    assert seen.step_memory_mb
    if slug == "dgc":  # the whole run, and not only its steps
        assert seen.steps == 6
        assert seen.total_steps == 164 * (5000 // 8)
        assert seen.samples == 8
        assert seen.eval_batches == 164 * 1000 // 8 + 800 // 8
        assert seen.loader_samples_per_second


def test_data_may_have_no_validation(tmp_path: Path) -> None:
    typed = ("paper=skeleton", "scale=smoke", "arm=boolean", "seed=0", "hardware=cpu")
    (seen,) = measured(tmp_path, *typed, steps=2)
    assert seen.eval_batches > 0  # the shapes, which are for the test alone


def test_it_is_no_result(toy: Path) -> None:
    """No study, no time, no record and no claim is taken from it."""
    outputs = toy / "outputs"
    study = create_study(rehearsed(plan_study(["paper=toy", "scale=smoke"]), 4, SLOW), outputs)
    for run in study.runs:
        assert execute(run.folder) == Status.FINISHED, run.record().error
    assert study.folder.relative_to(outputs).parts[:3] == ("toy", "rehearsal", "smoke")
    assert not study.is_judged
    assert find_studies(outputs) == []
    assert typical_seconds(load_paper("toy"), "smoke", outputs) == {}
    with pytest.raises(UserError, match="rehearsal"):
        record.record({"paper": "toy", "scale": "smoke"}, outputs, study.folder)


def test_one_seed_is_rehearsed_and_all_are_counted(toy: Path) -> None:
    plan = rehearsed(plan_study(["paper=toy", "scale=smoke", "seeds=[3,4,5]"]), 4, SLOW)
    assert {run.seed for run in plan.runs} == {3}
    assert plan.rehearsal is not None
    assert plan.rehearsal["seeds"] == 3


def test_the_command_prints_every_arm(toy: Path) -> None:
    typed = ["run", "paper=toy", "scale=smoke", "arm=[sgd,adam]", "--rehearse", "--steps", "4"]
    done = CliRunner().invoke(cli, [*typed, "--json"])
    assert done.exit_code == 0, done.output
    arms = json.loads(done.stdout)
    assert [arm["arm"] for arm in arms] == ["sgd", "adam"]
    assert all(arm["measured"]["resumed"] for arm in arms)
    shown = CliRunner().invoke(cli, typed)
    assert "hours" in shown.output
    assert not find_studies(Path("outputs"))
    planned = CliRunner().invoke(cli, ["run", "paper=toy", "scale=smoke", "--dry-run"])
    assert re.search(r"Rehearsed: 2 seeds of 2 arms: [\d.e-]+ hours on 1 × ", planned.output)


def test_what_a_study_would_cost_is_one_sentence() -> None:
    sizes: dict[str, Any] = {"memory_mb": 41_500.0, "host_mb": 2_300.0, "disk_bytes": 10**9}
    cost = Cost(arms=1, seeds=3, hours=61.54, devices=8, device="H100", **sizes)
    assert cost.sentence == (
        "3 seeds of 1 arm: 61.5 hours on 8 × H100 with 41.5 GB of memory and 2.3 GB on the host, "
        "1 GB of checkpoints."
    )


def test_what_was_never_run_says_how_to_find_out(toy: Path) -> None:
    planned = CliRunner().invoke(cli, ["run", "paper=toy", "--dry-run"])
    assert "repro run toy scale=mini --rehearse" in " ".join(planned.output.split())


def test_processes_that_train_together_resume_together(tmp_path: Path) -> None:
    typed = ("paper=dgc", "scale=smoke", "arm=dense", "seed=0", "hardware=ddp_cpu")
    (seen,) = measured(tmp_path, *typed, steps=4)
    assert seen.devices == 2
    assert seen.resumed


OUT_OF_MEMORY = "OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize(
    ("message", "total", "state", "words"),
    [
        (OUT_OF_MEMORY, None, "failed", "hardware.accumulate=2"),
        (OUT_OF_MEMORY, 9, "failed", "hardware.accumulate=2"),
        (
            "KeyError: 'accuracy_r90'",
            9,
            "yes",
            "could not be rehearsed",
        ),  # it ended after four steps
        ("KeyError: 'accuracy_r90'", 4, "failed", "KeyError"),
        ("No module: pip install 'gradient-repro[fid]'", None, "not here", "gradient-repro[fid]"),
    ],
)
def test_what_went_wrong_is_told(
    toy: Path, message: str, total: int | None, state: str, words: str
) -> None:
    """Where there is a total, the error came after the last step."""
    study = prepared(toy, "paper=toy", "scale=smoke", "arm=sgd", "seed=0")
    (run,) = study.runs
    run.update(status=Status.FAILED, error={"kind": "run", "message": message, "traceback": ""})
    if total is not None:
        keep_rehearsal(run, Rehearsal(**SEEN, total_steps=total))
    (row,) = full_scale.rows(study)
    assert row.cells()[-1] == state
    (problem,) = row.problems
    assert words in problem


def test_a_loader_that_is_less_than_twice_as_fast_as_training_is_told(toy: Path) -> None:
    study = prepared(toy, "paper=toy", "scale=smoke", "arm=sgd", "seed=0")
    for alone, is_told in ((1900.0, True), (2100.0, False)):  # a process; both train 2000 samples/s
        keep_rehearsal(study.runs[0], Rehearsal(**SEEN, loader_samples_per_second=alone))
        (row,) = full_scale.rows(study)
        assert any("dataset.workers" in problem for problem in row.problems) is is_told


def test_a_job_of_a_cluster_is_short() -> None:
    pytest.importorskip("submitit")
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "seed=0", "hardware=slurm_gpu"]
    (run,) = rehearsed(plan_study(typed), 4, SLOW).runs
    assert run.content["hardware"]["launcher"]["timeout_min"] <= 30


@pytest.mark.parametrize("what", ["training_step", "test_step"])
def test_what_takes_long_is_ended(what: str, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step, of which nothing is measured, and a test, without which the steps are."""
    monkeypatch.setattr(Supervised, what, lambda *_: time.sleep(60))
    study = create_study(
        rehearsed(plan_study(["paper=toy", "scale=smoke", "arm=sgd", "seed=0"]), 4, 1 / 60), toy
    )
    began = time.monotonic()
    assert execute(study.runs[0].folder) == Status.FAILED
    assert time.monotonic() - began < 60
    (row,) = full_scale.rows(study)
    assert (row.measured is None) == (what == "training_step")
    assert "say --minutes" in row.problems[0]


def test_no_time_is_spent_on_more_minutes_than_allowed(toy: Path) -> None:
    study = create_study(
        rehearsed(plan_study(["paper=toy", "scale=smoke", "arm=sgd", "seed=0"]), 10**6, 0.0), toy
    )
    assert execute(study.runs[0].folder) == Status.FINISHED
    seen = rehearsal_of(study.runs[0])
    assert seen is not None
    assert seen.steps < 5
    assert os.listdir(study.runs[0].checkpoints_folder)
