"""Studies on a real Slurm: arrays, layers, requeues, warnings, failures, several tasks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from interruptions import timeless
from processes import repro, start, until
from two_workers import PROCESSES, SIMULATED, assert_same_training

from repro.launching.queue import current_record, jobs_of
from repro.planning.rehearse import JOB_MINUTES
from repro.records.rehearsal import rehearsal_of
from repro.records.run import Run, Status
from repro.records.series import read_series
from repro.records.study import Study, find_studies

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SECONDS_OF_JOBS = 240  # each job imports everything anew, which takes a busy machine a while
TOY = ["run", "paper=toy", "scale=smoke", "training.checkpoint.every_seconds=0"]
SLURM = ["hardware=slurm_cpu", "hardware.launcher.mem_gb=1"]


def only_study(outputs: Path) -> Study:
    (study,) = find_studies(outputs)
    return study


def event(folder: Path, what: str, at: str, arm: str) -> dict[str, str]:
    return {"what": what, "at": at, "arm": arm, "once": str(folder / f"{arm}-was-hit")}


def weights(run: Run) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    return dict(checkpoint["state_dict"])


def assert_same_bits(left: Run, right: Run) -> None:
    assert left.status() is right.status() is Status.FINISHED
    assert timeless(left) == timeless(right)
    assert read_series(left.folder / "metrics.csv") == read_series(right.folder / "metrics.csv")
    mine, other = weights(left), weights(right)
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())


def test_a_detached_study_survives_a_requeue_and_a_warning_bit_for_bit(cluster: Path) -> None:
    study_of = [*TOY, "arm=tuned"]
    events = [  # each hits one of the two runs of its layer
        event(cluster, "requeue", "step 40", arm="sgd"),
        event(cluster, "SIGUSR2", "step 30", arm="tuned"),
    ]
    command = [*study_of, *SLURM, "--detach"]
    code, output = repro(command, cluster, {"TOY_EVENT": json.dumps(events)})
    assert code == 0, output
    study = only_study(cluster / "outputs")
    assert all(run.status() is Status.WAITING for run in study.runs)
    jobs = re.search(r"Submitted to Slurm: (\d+), (\d+)", output)
    assert jobs
    arrays = [f"{job}_{task}" for job in jobs.groups() for task in (0, 1)]
    assert [run.job for run in study.runs] == arrays

    # Nobody waits: the last job to end writes the verdicts. Meanwhile the same study runs here.
    assert repro([*study_of, "outputs=local", "n_jobs=1", "-q"], cluster)[0] == 0
    until(study.verdicts_file.is_file, SECONDS_OF_JOBS)
    local = only_study(cluster / "local")
    for ours, theirs in zip(study.runs, local.runs, strict=True):
        assert_same_bits(ours, theirs)
    assert study.verdicts_file.read_bytes() == local.verdicts_file.read_bytes()
    for layer, saved_at in zip(study.layers, ("step", "step 30"), strict=True):
        assert sorted(run.record().attempts for run in layer) == [1, 2]
        logs = "".join((run.folder / "log.txt").read_text() for run in layer)
        assert f"continuing after {saved_at}" in logs

    code, output = repro(["resume"], cluster)
    assert code == 0
    assert "T1" in output
    assert "Submitted" not in output  # nothing was left to do


def test_a_detached_study_grows_by_itself(cluster: Path) -> None:
    """Two seeds leave the claim open; the last of their jobs submits the third."""
    auto = ["seeds=auto", "looks.first=2", "max_seeds=3", "training.epochs=1"]
    code, output = repro([*TOY, "arm=tuned", *auto, *SLURM, "--detach"], cluster)
    assert code == 0, output
    study = only_study(cluster / "outputs")

    def is_whole() -> bool:
        runs = Study.open(study.folder).runs
        return len(runs) == 6 and all(run.status() is Status.FINISHED for run in runs)

    until(is_whole, 2 * SECONDS_OF_JOBS)
    arms = [run.record().arm for run in Study.open(study.folder).runs]
    assert sorted(arms) == ["sgd"] * 3 + ["tuned"] * 3


def test_failed_and_cancelled_jobs_are_reported_and_resumed(cluster: Path) -> None:
    typed = [*TOY, "arm=[sgd,adam]", "seed=0", *SLURM, "hardware.launcher.array_parallelism=1"]
    failure = event(cluster, "error", "step 5", arm="sgd")
    command = start(typed, cluster, {"TOY_EVENT": json.dumps([failure])})
    until(lambda: len(list(cluster.glob("outputs/toy/smoke/*/adam/*/job.json"))) == 1)
    failing, cancelled = only_study(cluster / "outputs").runs
    subprocess.run(["scancel", str(cancelled.job)], check=True)
    code, output = command.wait(), command.output()
    assert code == 1
    assert failing.status() is Status.FAILED
    assert current_record(cancelled).status is Status.INTERRUPTED  # as Slurm knows
    assert "sgd seed 0 failed: ValueError: something broke" in output
    assert f"{failing.folder.relative_to(cluster)}/log.txt:" in output
    assert f"job {cancelled.job} (adam seed 0) is gone" in output
    assert "It never started" in output

    code, output = repro(["resume", "-q"], cluster)
    assert code == 0, output
    assert failing.status() is cancelled.status() is Status.FINISHED


def test_two_tasks_train_like_two_simulated_workers(cluster: Path) -> None:
    two = ["hardware=slurm_cpu", "hardware.devices=2", "hardware.strategy=ddp"]
    two += ["hardware.launcher.mem_gb=2", "outputs=real"]
    code, output = repro(["run", *PROCESSES, *two, "--detach"], cluster)
    assert code == 0, output
    assert repro(["run", *SIMULATED, "outputs=simulated", "-q"], cluster)[0] == 0
    real = only_study(cluster / "real")
    until(lambda: not jobs_of(real.runs), SECONDS_OF_JOBS)
    assert_same_training(only_study(cluster / "simulated").runs[0], real.runs[0])


def test_a_rehearsal_is_one_short_job_that_measures_what_it_does_here(cluster: Path) -> None:
    rehearse = [*TOY, "arm=sgd", "seed=0", "--rehearse", "--steps", "4", "-q"]
    found = {}
    for where, typed in (("jobs", SLURM), ("here", ["hardware=cpu"])):
        code, output = repro([*rehearse, *typed, f"outputs={where}"], cluster)
        assert code == 0, output
        (folder,) = cluster.glob(f"{where}/toy/rehearsal/smoke/*")
        (run,) = Study.open(folder).runs
        assert run.record().attempts == 1  # cut and resumed within the job
        found[where] = rehearsal_of(run)
        if where == "jobs":
            show = ["scontrol", "show", "job", str(run.job)]
            job = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            assert f"TimeLimit=00:{JOB_MINUTES}:00" in job
        assert find_studies(cluster / where) == []  # no result
    there, here = found["jobs"], found["here"]
    assert there is not None
    assert here is not None
    assert there.resumed
    for name in ("steps", "parameters", "samples", "flops_per_step", "total_steps", "eval_batches"):
        assert getattr(there, name) == getattr(here, name), name


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("hardware.launcher.partition=debgu", "Did you mean 'debug'?"),
        ("hardware.launcher.mem_gb=100000", "Slurm refused the jobs: Memory specification"),
        ("+hardware.launcher.additional_parameters.colour=red", "unrecognized option"),
    ],
)
def test_what_slurm_refuses_is_told_in_a_line_and_leaves_nothing(
    cluster: Path, typed: str, complaint: str
) -> None:
    code, output = repro([*TOY, "arm=sgd", "seed=0", SLURM[0], "-q", typed], cluster)
    assert code == 2
    assert complaint in output
    assert find_studies(cluster / "outputs") == []
