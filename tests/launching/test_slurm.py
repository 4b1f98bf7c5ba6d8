"""What is said about Slurm's jobs, with commands that stand in for Slurm's own."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from fake_outputs import rewrite_config
from repro.cli.main import cli

from repro.launching import local, queue
from repro.launching.local import run_study
from repro.launching.queue import JobState, current_record
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run, Status
from repro.records.study import Study, find_studies
from repro.training.execute import execute_here

ONE_RUN = ["paper=toy", "scale=smoke", "arm=sgd", "seed=0"]
HERE = socket.gethostname()


@pytest.fixture
def commands(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for Slurm's commands, the only ones to be found."""
    folder = toy / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def repro(arguments: list[str]) -> tuple[int, str]:
    """Runs a command in this process: exit code and output."""
    done = CliRunner().invoke(cli, arguments)
    return done.exit_code, done.output


def stand_in(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def accepting(folder: Path) -> None:
    """Stand-ins of a Slurm that keeps every job in its queue, and every script in this folder."""
    stand_in(
        folder,
        "sbatch",
        f"n=$(($(/bin/cat {folder}/count 2>/dev/null || echo 6) + 1)); echo $n >{folder}/count\n"
        f"/bin/cp $1 {folder}/$n.sh; echo Submitted batch job $n",
    )
    stand_in(folder, "srun", "exit 1")
    stand_in(folder, "squeue", 'for i in 0 1 2 3; do echo "${4#*=}_$i|PENDING|Priority"; done')


def options(script: Path) -> dict[str, str]:
    """The options of a batch script."""
    return dict(re.findall(r"#SBATCH --([a-z-]+)=(.*)", script.read_text()))


def test_layers_are_arrays_that_depend_on_each_other(commands: Path) -> None:
    accepting(commands)
    typed = ["paper=toy", "scale=smoke", "arm=tuned", "hardware=slurm_multinode"]
    keys = [f"hardware.launcher.{key}" for key in ("partition=fast", "constraint='a|b'")]
    keys += ["hardware.launcher.array_parallelism=1", "hardware.launcher.timeout_min=30"]
    code, output = repro(["run", *typed, *keys, "--detach"])
    assert code == 0, output
    assert "Submitted to Slurm: 7, 8" in output
    first, second = options(commands / "7.sh"), options(commands / "8.sh")
    assert second.pop("dependency") == "afterany:7"
    assert first == second
    wanted = {
        "array": "0-1%1",
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "4",
        "mem": "256GB",
        "time": "30",
        "signal": "USR2@120",
        "partition": "fast",
        "constraint": "'a|b'",
    }
    assert wanted.items() <= first.items()
    assert "account" not in first


def test_a_resumed_study_submits_only_what_no_job_works_on(commands: Path) -> None:
    accepting(commands)
    typed = ["paper=toy", "scale=smoke", "arm=tuned", "hardware=slurm_cpu"]
    assert repro(["run", *typed, "--detach"])[0] == 0
    (study,) = find_studies(commands.parent / "outputs")
    study.layers[1][1].note_job("5", commands / "none")  # a job that the stand-in does not know
    run_study(study, wait=False)
    assert sorted(file.name for file in commands.glob("*.sh")) == ["7.sh", "8.sh", "9.sh"]
    assert options(commands / "9.sh")["dependency"] == "afterany:7"
    assert "array" not in options(commands / "9.sh")
    assert study.layers[1][1].job == "9"


def test_the_last_job_of_a_look_submits_the_next(commands: Path) -> None:
    accepting(commands)
    typed = ["paper=toy", "scale=smoke", "arm=tuned", "hardware=slurm_cpu"]
    auto = ["seeds=auto", "looks.first=2", "max_seeds=3"]
    assert repro(["run", *typed, *auto, "--detach"])[0] == 0
    (study,) = find_studies(commands.parent / "outputs")
    for run, accuracy in zip(study.runs, (0.5, 0.5, 0.1, 0.9), strict=True):
        run.update(status="finished", seconds=1.0)
        run.summary_file.write_text(json.dumps({"test/accuracy": accuracy}))
    with study.held():  # by somebody who waits
        local.conclude(study)
        assert {run.record().seed for run in Study.open(study.folder).runs} == {0, 1}
    local.conclude(study)
    local.conclude(Study.open(study.folder))  # by another job that ended at the same time
    fresh = [run for run in Study.open(study.folder).runs if run.record().seed == 2]
    assert [(run.record().arm, run.job) for run in fresh] == [("sgd", "9"), ("tuned", "10")]
    assert options(commands / "10.sh")["dependency"] == "afterany:9"
    assert sorted(int(file.stem) for file in commands.glob("*.sh")) == [7, 8, 9, 10]


def test_a_job_that_submits_leaves_its_own_number_out(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepting(commands)
    script = (commands / "sbatch").read_text()
    (commands / "sbatch").write_text(f"{script}/usr/bin/env >{commands}/environment\n")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CONF", "here")
    assert repro(["run", *ONE_RUN, "hardware=slurm_cpu", "--detach"])[0] == 0
    inherited = (commands / "environment").read_text()
    assert "SLURM_ARRAY_JOB_ID" not in inherited
    assert "SLURM_CONF=here" in inherited
    assert os.environ["SLURM_ARRAY_JOB_ID"] == "5"


def test_exclusive_runs_are_jobs_that_wait_for_each_other(commands: Path) -> None:
    accepting(commands)
    typed = ["paper=toy", "scale=smoke", "arm=[adam,tuned]", "hardware=slurm_cpu"]
    alone = "arms.adam=['optimizer=adam','exclusive=true']"
    assert repro(["run", *typed, alone, "--detach"])[0] == 0
    jobs = {int(file.stem): options(file) for file in commands.glob("*.sh")}
    assert {number: job.get("dependency") for number, job in jobs.items()} == {
        7: None,
        8: "afterany:7",
        9: "afterany:7:8",
        10: "afterany:7:8:9",
    }
    assert [number for number, job in jobs.items() if "array" in job] in ([7, 8], [8, 7])


MIXED = [*ONE_RUN, "training.epochs=1", "hardware=cpu,slurm_cpu"]


def test_each_run_goes_to_its_own_launcher(commands: Path) -> None:
    accepting(commands)
    study = create_study(plan_study(MIXED, grid=True), commands.parent)
    run_study(study, wait=False)
    here, job = study.runs
    assert (here.status(), here.job) == (Status.FINISHED, None)
    assert (job.status(), job.job) == (Status.WAITING, "7")
    started = here.record().started
    assert started is not None
    assert (commands / "7.sh").stat().st_mtime <= started.timestamp() + 1, "jobs go first"


def test_a_study_that_is_not_all_jobs_cannot_be_detached(commands: Path) -> None:
    accepting(commands)
    code, output = repro(["run", "-m", *MIXED, "--detach"])
    assert code == 2
    assert "--detach leaves a study to a cluster" in output
    assert not (commands.parent / "outputs").exists()


def test_a_local_child_waits_for_its_parents_job(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepting(commands)
    stand_in(commands, "squeue", 'echo "${4#*=}|PENDING|Priority"')
    study = create_study(plan_study(["paper=toy", "scale=smoke", "arm=tuned", "seed=0"]), commands)
    parent, child = study.runs
    config = parent.config_file.read_text()
    rewrite_config(parent, config.replace("name: basic", "name: submitit_slurm"))
    executed: list[Run] = []

    def end_job(_: float) -> None:
        assert not child.record().attempts
        execute_here(parent, parent.job)
        executed.append(parent)

    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=end_job))
    run_study(study, wait=False)
    assert executed == [parent]
    assert child.status() is Status.FINISHED


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["hardware=slurm_cpu"], "There is no Slurm on this machine"),
        (["hardware=slurm_gpu", "--detach"], "There is no Slurm on this machine"),
        (["-m", "hardware=cpu,slurm_cpu"], "There is no Slurm on this machine"),
        (["hardware=cpu", "--detach"], "--detach leaves a study to a cluster"),
        (["hardware=slurm_gp"], "Did you mean 'slurm_gpu'?"),
        (["hardware=slurm_cpu", "hardware.launcher.partitoin=x"], "hardware.launcher.partition"),
        (["hardware=slurm_cpu", "hardware.launcher.timeout_min=long"], "a whole number"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    commands: Path, typed: list[str], complaint: str
) -> None:
    code, output = repro(["run", *ONE_RUN, *typed])
    assert code == 2
    assert complaint in output
    assert len(output.splitlines()) <= 3
    assert not (commands.parent / "outputs").exists()


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (
            "sbatch: error: invalid partition specified: debgu\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
            "Did you mean 'debug'? Partitions here: debug, long.",
        ),
        ("sbatch: error: Batch job submission failed: Invalid account", "Invalid account"),
        ("sbatch: unrecognized option '--colour'", "unrecognized option '--colour'"),
    ],
)
def test_a_refusal_leaves_nothing_behind(commands: Path, error: str, complaint: str) -> None:
    accepting(commands)
    stand_in(commands, "sbatch", f'echo "{error}" >&2; exit 1')
    stand_in(commands, "sinfo", "echo debug; echo long")
    code, output = repro(["run", *ONE_RUN, "hardware=slurm_cpu"])
    assert code == 2
    assert complaint in output
    assert find_studies(commands.parent / "outputs") == []


def test_a_refused_layer_takes_the_earlier_ones_back(commands: Path) -> None:
    accepting(commands)
    stand_in(
        commands,
        "sbatch",
        f"[ -e {commands}/one ] && exit 1; echo >{commands}/one; echo Submitted batch job 7",
    )
    stand_in(commands, "scancel", f'echo "$@" >{commands}/cancelled')
    typed = ["paper=toy", "scale=smoke", "arm=tuned", "hardware=slurm_cpu"]
    assert repro(["run", *typed])[0] == 2
    assert (commands / "cancelled").read_text().split() == ["--quiet", "7"]


@pytest.mark.parametrize(
    ("written", "host", "job", "seen"),
    [
        ("waiting", None, JobState.QUEUED, "waiting"),
        ("waiting", None, JobState.RUNNING, "waiting"),  # it is starting
        ("waiting", None, JobState.GONE, "interrupted"),  # cancelled before it started
        ("waiting", None, JobState.UNKNOWN, "waiting"),
        ("running", "elsewhere", JobState.RUNNING, "running"),
        ("running", "elsewhere", JobState.QUEUED, "waiting"),  # killed and requeued
        ("running", "elsewhere", JobState.GONE, "interrupted"),  # killed
        ("running", "elsewhere", JobState.UNKNOWN, "running"),
        ("running", HERE, JobState.RUNNING, "waiting"),  # killed here, about to be requeued
        ("running", HERE, JobState.GONE, "interrupted"),
        ("running", HERE, JobState.UNKNOWN, "interrupted"),  # the lock is free
        ("interrupted", HERE, JobState.QUEUED, "waiting"),  # it saved its state for the next job
        ("interrupted", HERE, JobState.GONE, "interrupted"),
        ("failed", HERE, JobState.RUNNING, "failed"),
        ("finished", "elsewhere", JobState.GONE, "finished"),
    ],
)
def test_status_combines_what_the_run_wrote_with_what_slurm_says(
    toy: Path, monkeypatch: pytest.MonkeyPatch, written: str, host: str, job: Any, seen: str
) -> None:
    run = create_study(plan_study(ONE_RUN), toy).runs[0]
    run.note_job("7_0", toy / "log")
    run.update(status=written, host=host)
    monkeypatch.setattr(queue, "job_state", lambda *_: (job, "WORD"))
    assert current_record(run).status == seen


def test_a_run_that_ends_while_slurm_is_asked_has_ended(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_study(plan_study(ONE_RUN), toy).runs[0]
    run.note_job("7", toy / "log")
    run.update(status="running", host="elsewhere")

    def finish(*_: Any) -> tuple[JobState, str]:
        run.update(status="finished")
        return JobState.GONE, ""

    monkeypatch.setattr(queue, "job_state", finish)
    assert current_record(run).status is Status.FINISHED


def test_squeue_is_asked_once_for_an_array_and_again_for_a_job_it_did_not_know(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_answers", {})
    asked = commands / "asked"
    stand_in(
        commands,
        "squeue",
        f"echo >>{asked}; echo '7_0|RUNNING|None'; echo '7_1|PENDING|Dependency'",
    )
    now = os.stat(commands).st_mtime
    assert queue.job_state("7_0", now - 5) == (JobState.RUNNING, "RUNNING")
    assert queue.job_state("7_1", now - 5) == (JobState.QUEUED, "PENDING, Dependency")
    assert queue.job_state("7_2", now - 5) == (JobState.GONE, "")
    assert len(asked.read_text()) == 1
    assert queue.job_state("7_2", now + 5) == (JobState.GONE, "")
    assert len(asked.read_text()) == 2


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", JobState.GONE),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", JobState.UNKNOWN),
        (None, JobState.UNKNOWN),
    ],
)
def test_an_answer_that_is_missing_condemns_no_job(
    commands: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, state: JobState
) -> None:
    monkeypatch.setattr(queue, "_answers", {})
    if script is not None:
        stand_in(commands, "squeue", script)
    assert queue.job_state("7", 0.0) == (state, "")


def test_a_run_continued_by_hand_belongs_to_no_job_any_more(toy: Path) -> None:
    study = create_study(plan_study([*ONE_RUN, "training.epochs=1"]), toy)
    study.runs[0].note_job("7", toy / "log")
    code, output = repro(["resume", str(study.runs[0].folder)])
    assert code == 0, output
    assert study.runs[0].job is None
    assert Run(study.runs[0].folder).status() is Status.FINISHED
