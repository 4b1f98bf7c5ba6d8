"""A run that was killed, by whatever signal and wherever, ends with the bits of a straight one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import repro, start, until
from repro.cli import workflow

from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.series import read_series
from repro.records.status import Status
from repro.records.study import Study, find_studies
from repro.training.stopping import StopRequest

ONE_RUN = ["run", "paper=toy", "scale=smoke", "arm=sgd", "seed=0", "n_jobs=1", "-q"]
OFTEN = ["training.checkpoint.every_seconds=0"]
MID_EPOCH = ["training.checkpoint.every_steps=7"]
SETTINGS = {
    "epochs": OFTEN,
    "steps": MID_EPOCH,
    "adam": [*MID_EPOCH, "optimizer=adam"],
    "plateau": [*MID_EPOCH, "schedule=plateau", "training.test_with=best"],
    "max_steps": [*MID_EPOCH, "training.max_steps=35"],
    "lstm": [
        *MID_EPOCH,
        "dataset=stdlib_text",
        "dataset.max_bytes=40000",
        "model=lstm",
        "model.hidden=8",
        "model.embedding=8",
        "model.layers=2",
        "model.dropout=0.2",
        "model.stateful=true",
        "training.monitor=val/loss",
        "training.mode=min",
    ],
}


@dataclass(frozen=True)
class Outcome:
    """What must not depend on interruptions."""

    summary: dict[str, Any]
    series: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]


def only_study(folder: Path) -> Study:
    (study,) = find_studies(folder / "outputs")
    return study


def outcome(folder: Path, run: int = 0) -> Outcome:
    done = only_study(folder).runs[run]
    assert done.status() == "finished", (folder / "output-0.txt").read_text()
    checkpoint = torch.load(done.last_checkpoint, weights_only=True)
    return Outcome(
        {k: v for k, v in done.summary().items() if not k.startswith("time/")},
        read_series(done.folder / "metrics.csv"),
        checkpoint["state_dict"],
    )


def assert_same(left: Outcome, right: Outcome) -> None:
    assert left.summary == right.summary
    assert left.series == right.series
    assert left.weights.keys() == right.weights.keys()
    for name, tensor in left.weights.items():
        assert torch.equal(tensor, right.weights[name]), name


def event(folder: Path, what: str, at: str, arm: str = "sgd") -> dict[str, str]:
    once = str(folder / "it-happened")
    return {"TOY_EVENT": json.dumps({"what": what, "at": at, "arm": arm, "once": once})}


def interrupt(
    folder: Path, what: str, at: str, overrides: Sequence[str], exit_code: int
) -> dict[str, str]:
    environment = event(folder, what, at)
    code, output = repro([*ONE_RUN, *overrides], folder, environment)
    assert code == exit_code, output
    assert only_study(folder).runs[0].status() == "interrupted"
    return environment


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Outcomes of runs that nothing interrupted, by setting; filled on demand."""
    return {}


@pytest.fixture
def uninterrupted(
    toy: Path, straight: dict[str, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    def get(setting: str) -> Outcome:
        if setting not in straight:
            folder = tmp_path_factory.mktemp(setting)
            code, output = repro([*ONE_RUN, *SETTINGS[setting]], folder)
            assert code == 0, output
            straight[setting] = outcome(folder)
        return straight[setting]

    return get


@pytest.mark.parametrize(
    ("setting", "at"),
    [
        ("epochs", "step 3"),  # before there is any checkpoint
        ("epochs", "step 30"),
        ("epochs", "validation 1"),  # between the last batch of an epoch and its checkpoint
        ("epochs", "test"),  # between the last checkpoint and the summary
        ("steps", "step 15"),
        ("steps", "step 20"),  # the last batch of an epoch
        ("steps", "validation 2"),
        ("steps", "test"),
        ("adam", "step 30"),
        ("plateau", "step 50"),
        ("max_steps", "step 35"),
        ("max_steps", "test"),
        ("lstm", "step 30"),
    ],
)
def test_killed_run_ends_with_the_same_bits(
    toy: Path, uninterrupted: Any, setting: str, at: str
) -> None:
    environment = interrupt(toy, "SIGKILL", at, SETTINGS[setting], exit_code=-9)
    code, output = repro(["resume", "-q"], toy, environment)
    assert code == 0, output
    assert_same(outcome(toy), uninterrupted(setting))


@pytest.mark.parametrize(
    ("what", "setting", "at"),
    [
        ("SIGINT", "epochs", "step 30"),
        ("SIGTERM", "lstm", "step 30"),
        ("SIGINT", "plateau", "step 60"),  # the very last step: only the test is left
        ("SIGTERM", "epochs", "step 40"),  # the last step of an epoch
        ("SIGTERM", "epochs", "validation 0"),
        ("SIGINT", "max_steps", "step 35"),
        ("SIGHUP", "epochs", "step 30"),  # a terminal that was closed
    ],
)
def test_a_signal_saves_at_once_and_the_resumed_run_has_the_same_bits(
    toy: Path, uninterrupted: Any, what: str, setting: str, at: str
) -> None:
    environment = interrupt(toy, what, at, SETTINGS[setting], exit_code=130)
    saved = torch.load(only_study(toy).runs[0].last_checkpoint, weights_only=True)
    reached = {"step 30": 30, "step 60": 60, "step 40": 40, "validation 0": 20, "step 35": 35}
    assert saved["global_step"] == reached[at]
    assert "repro resume" in (toy / "output-0.txt").read_text()
    code, output = repro(["resume", "-q"], toy, environment)
    assert code == 0, output
    assert_same(outcome(toy), uninterrupted(setting))


def test_a_signal_during_the_test_stops_the_study_after_that_run(toy: Path) -> None:
    environment = event(toy, "SIGTERM", "test")
    study = [*ONE_RUN[:3], "arm=sgd", "seeds=[0,1]", "n_jobs=1", "-q"]
    code, output = repro(study, toy, environment)
    assert code == 130, output
    assert [run.status() for run in only_study(toy).runs] == ["finished", "waiting"]


def test_a_study_killed_in_its_second_layer_ends_like_a_straight_one(
    toy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = ["run", "paper=toy", "scale=smoke", "arm=tuned", "seed=1", "-q", *MID_EPOCH]
    environment = event(toy, "SIGKILL", "step 25", arm="tuned")
    assert repro(study, toy, environment)[0] == -9
    assert [run.status() for run in only_study(toy).runs] == ["finished", "interrupted"]
    code, output = repro(["resume", "-q"], toy, environment)
    assert code == 0, output
    straight = tmp_path_factory.mktemp("straight")
    assert repro(study, straight)[0] == 0
    for run in range(2):
        assert_same(outcome(toy, run), outcome(straight, run))
    assert json.loads(only_study(toy).runs[1].record_file.read_text())["attempts"] == 2


def test_two_signals_stop_at_once(toy: Path) -> None:
    run = [*ONE_RUN, "training.epochs=100000", "model.hidden=[2000,2000,2000]"]
    command = start([*run, "dataset.batch_size=1024"], toy)  # long steps, so that both come in one
    until(lambda: bool(list(toy.glob("outputs/**/metrics.csv"))))
    command.send(signal.SIGINT)
    command.send(signal.SIGTERM)
    assert command.wait() == 130, command.output()
    assert only_study(toy).runs[0].status() == "interrupted"
    assert "Traceback" not in command.output()


@pytest.mark.slow
@pytest.mark.parametrize(("what", "exit_code"), [("SIGTERM", 130), ("SIGKILL", -9)])
def test_parallel_workers_stop_with_the_command(toy: Path, what: str, exit_code: int) -> None:
    typed = ["run", "paper=toy", "scale=smoke", "arm=sgd", "n_jobs=2", "training.epochs=100000"]
    command = start(typed, toy)
    until(lambda: [run.status() for run in studies(toy)] == ["running", "running"])
    workers = [run.record().pid for run in studies(toy)]
    command.send(signal.Signals[what])
    assert command.wait() == exit_code, command.output()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    until(lambda: [run.status() for run in studies(toy)] == ["interrupted", "interrupted"])


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_study_whose_folder_is_deleted_stops_and_leaves_it_deleted(
    toy: Path, n_jobs: int
) -> None:
    typed = ["run", "paper=toy", "scale=smoke", "arm=sgd", "training.epochs=100000"]
    command = start([*typed, "seeds=[0,1,2,3]", f"n_jobs={n_jobs}", "-q"], toy)
    until(lambda: [run.status() for run in studies(toy)][:n_jobs] == ["running"] * n_jobs)
    processes = [run.record().pid for run in studies(toy)[:n_jobs]]
    study = only_study(toy).folder
    while study.exists():  # they still write
        shutil.rmtree(study, ignore_errors=True)
    command.send(signal.SIGTERM)
    code = command.wait()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    assert not study.exists()
    (line,) = command.output().splitlines()
    if code == 130:
        assert line == f"repro: Stopped. {study.relative_to(toy)} was deleted meanwhile."
    else:  # it missed run.json before the signal came
        assert code in (1, 2)
        assert str(study.relative_to(toy)) in line


def test_who_stops_before_the_first_checkpoint_is_told_what_resuming_does(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["paper=toy", "scale=smoke", "arm=sgd", "seeds=[0,1]"]
    study = create_study(plan_study(typed), toy / "outputs")
    said = {}
    for run in study.runs:
        run.update(status=Status.INTERRUPTED)
    for number, run in enumerate(study.runs):
        workflow._say_stopped(study)
        said[number] = capsys.readouterr().err.splitlines()
        run.checkpoints_folder.mkdir()
        run.last_checkpoint.touch()
    workflow._say_stopped(study)
    assert said[0][1:] == ["repro: 2 runs have no checkpoint yet and start anew."]
    assert said[1][1:] == ["repro: 1 run has no checkpoint yet and starts anew."]
    assert "Continue with: repro resume" in capsys.readouterr().err.splitlines()[-1]


def test_without_a_folder_there_is_nothing_to_be_polite_about(tmp_path: Path) -> None:
    with StopRequest(tmp_path / "deleted") as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested


def studies(folder: Path) -> list[Any]:
    return [run for study in find_studies(folder / "outputs") for run in study.runs]
