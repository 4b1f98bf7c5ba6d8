"""Runs the command in processes of their own that start in a blink: forks of one warm server."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

# On a machine that does other things too, seconds say nothing: what counts is the work done.
WORK = 180  # seconds of computing after which something should have happened
SILENCE = 180  # seconds without any computing after which nothing will happen
LOOK = 1.0  # seconds between looks at who computes, each of which reads all of /proc
PR_SET_PDEATHSIG = 1
SUPPORT = Path(__file__).parent
# Importing torch and Lightning takes seconds: the server does it once for all its forks.
PRELOADED = [
    "matplotlib.backends.backend_agg",
    "optuna",
    "repro.claims.verdicts",
    "repro.cli.main",
    "repro.cli.workflow",
    "repro.data.tables.bundled",
    "repro.launching.needs",
    "repro.training.checkpoints",
    "repro.training.execute",
    "repro.training.hardware",
    "repro.training.metrics",
    "repro.training.series",
    "repro.training.speed",
    "repro.training.watch",
    "repro.search.loop",
    "repro.methods",
    "repro.models",
    "repro.training.supervised",
    "sklearn.datasets",
    "sklearn.metrics",
    "sklearn.model_selection",
    "warm",
]


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # the server sees it, its forks have their own
        patch.setenv("PYTHONPATH", str(SUPPORT))
        patch.setenv("REPRO_CONFIG_DIR", str(SUPPORT / "toy_project" / "conf"))
        forkserver.ensure_running()
    return context


@dataclass
class Command:
    """A `repro` command under way, in a process that can be killed for real."""

    process: BaseProcess
    log: Path

    def wait(self) -> int:
        """Waits for the end and returns the exit code, negative for a signal."""
        until(lambda: self.process.exitcode is not None)
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def seconds(self) -> float:
        """How long it has computed, its workers included, as long as they live."""
        return sum(map(_seconds, _members(self.process.pid)))

    def end(self) -> None:
        """Kills it and its workers, if they are still there."""
        for member in _members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        self.process.join()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def output(self) -> str:
        """What it wrote to standard output and standard error so far."""
        return self.log.read_text()


_started: list[Command] = []


def end_all() -> None:
    """Ends every command that a test started: none outlives it."""
    while _started:
        _started.pop().end()


def until(condition: Callable[[], bool], silence: float = SILENCE) -> None:
    """Waits until something becomes true, as long as the commands under way make progress.

    Args:
        condition: what.
        silence: seconds for which nobody has to compute.
    """
    worked = last = 0.0
    looked_at = changed_at = time.monotonic()
    while not condition():
        time.sleep(0.02)
        now = time.monotonic()
        if now < looked_at + LOOK:
            continue
        looked_at = now
        computed = sum(command.seconds() for command in _started)
        if computed != last:
            worked += max(0.0, computed - last)
            last, changed_at = computed, now
        said = "".join(command.output() for command in _started)
        assert worked < WORK, f"it never happened:\n{said}"
        assert now < changed_at + silence, f"it hangs:\n{said}"


def _members(group: int | None) -> list[int]:
    """The processes of a group, as far as they live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(_stat(folder.name)[2]) == group:
                found.append(int(folder.name))
    return found


def _seconds(process: int) -> float:
    """How long a process has computed."""
    with contextlib.suppress(OSError):
        return sum(map(int, _stat(process)[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _stat(process: int | str) -> list[str]:
    """What /proc says of a process, from its state on; names before that may hold anything."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def start(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Command:
    """Starts ``repro ARGUMENTS`` in ``folder``."""
    log = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
    process = _context().Process(
        target=_main,
        args=(list(arguments), str(folder), str(log), {**os.environ, **(environment or {})}),
    )
    process.start()
    log.touch()
    _started.append(Command(process, log))
    return _started[-1]


def repro(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs ``repro ARGUMENTS`` in ``folder`` to its end: exit code and output."""
    command = start(arguments, folder, environment)
    return command.wait(), command.output()


def _main(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    os.setpgrp()  # like a shell's job: a signal to the group reaches its workers too
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should the tests be killed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that nohup started ignore it
    limit = environment.get("TEST_FILE_LIMIT")
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["repro", *arguments]
    from repro.cli.main import main

    try:
        main()
    finally:
        # A process that was started by hand does so at its exit; a fork has no such exit.
        if "joblib" in sys.modules:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor().shutdown(wait=True, kill_workers=True)
