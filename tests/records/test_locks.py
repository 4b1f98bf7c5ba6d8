"""One executor a study: who comes second is told who was first, and a dead one keeps nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import start, until
from rooms import prepared

from repro.errors import UserError
from repro.records import locks
from repro.records.run import Run, Status
from repro.records.study import find_studies

LONG = ["run", "paper=toy", "scale=smoke", "arm=sgd", "training.epochs=100000", "n_jobs=1", "-q"]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "study" / ".lock"


@pytest.fixture(autouse=True)
def folder(lock: Path) -> None:
    lock.parent.mkdir()


def test_the_second_is_told_who_was_first(lock: Path) -> None:
    with locks.held_alone(lock):
        who = f"process {os.getpid()} on {socket.gethostname()} since 20"
        assert str(locks.holder_of(lock)).startswith(who)
        with pytest.raises(UserError, match=who) as error, locks.held_alone(lock):
            pass
        assert len(str(error.value).splitlines()) == 1
    assert locks.holder_of(lock) is None
    with locks.held_alone(lock):
        pass
    assert lock.read_text() == ""


def test_a_lock_of_a_dead_process_is_free(lock: Path) -> None:
    left = {"host": socket.gethostname(), "pid": 1, "since": "2026-01-01T00:00:00+00:00"}
    lock.write_text(json.dumps(left))
    with locks.held_alone(lock):
        assert f"process {os.getpid()} " in str(locks.holder_of(lock))


@pytest.mark.parametrize("content", ["{", "null", "x" * 1000])
def test_a_damaged_lock_is_free(lock: Path, content: str) -> None:
    lock.write_text(content)
    with locks.held_alone(lock):
        pass


def test_another_machine_is_believed_while_it_is_heard_of(lock: Path) -> None:
    left = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00"}
    lock.write_text(json.dumps(left))
    with (
        pytest.raises(UserError, match=r"process 7 on elsewhere .* works in"),
        locks.held_alone(lock),
    ):
        pass
    long_ago = time.time() - locks.SILENT_SECONDS - 1
    os.utime(lock, (long_ago, long_ago))
    with locks.held_alone(lock):
        pass


def test_a_holder_is_heard_of(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with locks.held_alone(lock):
        os.utime(lock, (0, 0))
        until(lambda: lock.stat().st_mtime > 0)


def test_a_second_resume_disturbs_nothing(toy: Path) -> None:
    first = start(LONG, toy)
    try:
        until(lambda: [str(r.status()) for r in runs(toy)] == ["running", "waiting"])
        study = find_studies(toy / "outputs")[0]
        for folder in (study.folder, study.runs[1].folder):
            second = start(["resume", "-q", str(folder)], toy)
            assert second.wait() == 2, second.output()
            who = f"is being executed by process {first.process.pid} on {socket.gethostname()}"
            assert who in second.output()
            assert len(second.output().strip().splitlines()) == 1
        assert [run.record().attempts for run in study.runs] == [1, 0]
    finally:
        first.send(signal.SIGKILL)
        first.wait()
    assert [str(run.status()) for run in runs(toy)] == ["interrupted", "waiting"]
    assert study.executor is None


def test_a_study_waits_for_no_run_that_somebody_executes(toy: Path) -> None:
    study = prepared(toy / "outputs", *LONG[1:-2])
    first = start(["resume", "-q", str(study.runs[1].folder)], toy)
    try:
        until(lambda: study.runs[1].status() is Status.RUNNING)
        second = start(["resume", "-q", str(study.folder)], toy)
        assert second.wait() == 2, second.output()
        assert f"is being executed by process {first.process.pid} on" in second.output()
        assert study.runs[0].record().attempts == 0
    finally:
        first.send(signal.SIGKILL)
        first.wait()


def runs(folder: Path) -> list[Run]:
    return [run for study in find_studies(folder / "outputs") for run in study.runs]
