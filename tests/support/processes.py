"""Runs the command in processes of their own that start in a blink: forks of one warm server."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

TIMEOUT = 180  # of a machine that does other things too
# Importing torch and Lightning takes seconds: the server does it once for all its forks.
PRELOADED = [
    "matplotlib.backends.backend_agg",
    "optuna",
    "repro.claims.verdicts",
    "repro.cli.workflow",
    "repro.data",
    "repro.training.execute",
    "repro.search.loop",
    "repro.methods",
    "repro.models",
    "repro.training.supervised",
    "sklearn.datasets",
    "sklearn.metrics",
]


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@dataclass
class Command:
    """A `repro` command under way, in a process that can be killed for real."""

    process: BaseProcess
    log: Path

    def wait(self) -> int:
        """Waits for the end and returns the exit code, negative for a signal."""
        self.process.join(TIMEOUT)
        assert self.process.exitcode is not None, f"it hangs:\n{self.output()}"
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def output(self) -> str:
        """What it wrote to standard output and standard error so far."""
        return self.log.read_text()


def until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Waits until something becomes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


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
    return Command(process, log)


def repro(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs ``repro ARGUMENTS`` in ``folder`` to its end: exit code and output."""
    command = start(arguments, folder, environment)
    return command.wait(), command.output()


def _main(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    os.setpgrp()  # like a shell's job: a signal to the group reaches its workers too
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
