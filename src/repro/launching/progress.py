"""Shows a study while it runs: a bar with the time left, or plain lines where no one watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from repro.errors import ReproError
from repro.launching.queue import current_record
from repro.records.run import Run
from repro.records.status import Status
from repro.records.study import Study


@contextmanager
def shown(study: Study, console: Console, quiet: bool) -> Iterator[None]:
    """Shows the progress of a study while the body executes it, wherever its runs execute."""
    if quiet:
        yield
        return
    with _Watcher(study, console):
        yield


class _Watcher:
    """Reads the run directories now and then: that works for every launcher."""

    def __init__(self, study: Study, console: Console) -> None:
        self.study = study.folder
        self.runs = runs = study.runs
        self.console = console
        self.done_before = sum(run.status().is_final for run in runs)
        self.announced: set[Run] = {run for run in runs if run.status().is_final}
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=len(runs), left="")

    def __enter__(self) -> None:
        self.bar.start()
        self.thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.thread.join()
        self._look()
        self.bar.stop()

    def _watch(self) -> None:
        while not self.stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        done = 0.0
        finished = 0
        running = []
        queue = ""
        for run in self.runs:
            if run in self.announced:
                done += 1
                finished += 1
                continue
            with suppress(ReproError):
                record = current_record(run)
                status = record.status
                if status.has_ended:
                    self.announced.add(run)
                    done += 1
                    finished += 1
                    self._announce(run, status, record.seconds or 0.0)
                elif status is Status.RUNNING:
                    done += record.progress
                    running.append(f"{record.arm} seed {record.seed}")
                else:
                    queue = queue or record.queue
        self.bar.update(
            self.task,
            completed=finished,
            description=", ".join(running) or queue or "starting",
            left=self._time_left(done),
        )

    def _announce(self, run: Run, status: Status, seconds: float) -> None:
        if not self.console.is_terminal or status is not Status.FINISHED:
            count = len(self.announced)
            where = run.folder.relative_to(self.study)
            self.console.print(
                f"[{count}/{len(self.runs)}] {where}: {status}, {seconds:.1f} s",
                markup=False,
                highlight=False,
            )

    def _time_left(self, done: float) -> str:
        fresh = done - self.done_before
        elapsed = time.monotonic() - self.started
        if fresh <= 0:
            return ""
        left = elapsed / fresh * (len(self.runs) - done)
        return f"{int(left // 60)}:{int(left % 60):02d} left"
