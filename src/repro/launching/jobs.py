"""What a Slurm job does: it executes one run, and concludes the study if that was its last one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.launching.queue import current_job
from repro.records.run import Run
from repro.records.study import Study

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

STOPPED = 143  # the exit code of a job that was told to stop


@dataclass(frozen=True)
class RunJob:
    """What each process of a job calls; submitit keeps it in a file until then.

    Slurm sends a signal some time before it takes the nodes away. The run then saves its state and
    stops, and submitit puts the job back into the queue; the same call continues the run.
    """

    folder: Path
    study: Path
    conclude: Callable[[Study], None]

    def __call__(self) -> str:
        """Executes or continues the run, and concludes the study if this was its last one."""
        from repro.training.execute import execute_here, is_main_process

        with _polite_warning() as warning:
            try:
                status = execute_here(Run.open(self.folder), current_job())
            except KeyboardInterrupt:
                if warning.received:
                    warning.requeue()
                sys.exit(STOPPED)
        study = Study.open(self.study)
        if is_main_process() and all(run.status().has_ended for run in study.runs):
            self.conclude(study)
        return str(status)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts into the queue again: the same, because run directories resume."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Warning:
    """Slurm's warning that time is up, turned into the polite SIGINT that a run understands."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number
        self.submitit: Any = signal.getsignal(number)
        self.received = False

    def receive(self, *_: Any) -> None:
        if not self.received:  # Slurm may repeat itself; a second SIGINT would not be polite
            self.received = True
            os.kill(os.getpid(), signal.SIGINT)

    def requeue(self) -> None:
        """Lets submitit's own handler put the job back into the queue and exit."""
        if callable(self.submitit):
            self.submitit(self.number, None)


@contextmanager
def _polite_warning() -> Iterator[_Warning]:
    import submitit

    warning = _Warning(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])
    signal.signal(warning.number, warning.receive)
    yield warning
