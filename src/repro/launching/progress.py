"""Shows a study while it runs: a line a run, or plain lines where no one watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)

from repro.errors import ReproError
from repro.launching.queue import current_record
from repro.records.run import Live, Run, RunRecord
from repro.records.status import Status
from repro.records.study import Study

LINES = 8  # runs shown by themselves; a cluster may work on hundreds
LOOK_SECONDS = 0.5
PLAIN_SECONDS = 60.0  # between lines about runs under way where output is no terminal


@contextmanager
def shown(study: Study, console: Console, quiet: bool) -> Iterator[None]:
    """Shows the progress of a study while the body executes it, wherever its runs execute."""
    if quiet:
        yield
        return
    with _Watcher(study, console):
        yield


def in_words(live: Live | None) -> str:
    """What is known of a run under way: time left, measures, speed."""
    if live is None:
        return ""
    left = "" if live.seconds_left is None else f"{_clock(live.seconds_left)} left"
    measures = [f"{name} {value:.4g}" for name, value in live.measures.items()]
    speed = f"{live.steps_per_second:.3g} steps/s" if live.steps_per_second else ""
    return "  ".join(filter(None, [left, *measures, speed]))


class _Watcher:
    """Reads the run directories now and then: that works for every launcher."""

    def __init__(self, study: Study, console: Console) -> None:
        self.study = study.folder
        self.runs = runs = study.runs
        self.console = console
        self.announced: set[Run] = {run for run in runs if run.status().is_final}
        self.done_before = len(self.announced)
        self.started = self.said_at = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.bar = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.whole = self.bar.add_task("starting", total=len(runs), note="")
        self.lines: dict[Run, TaskID] = {}

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
        while not self.stop.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        running: dict[Run, RunRecord] = {}
        queue = ""
        for run in self.runs:
            if run in self.announced:
                continue
            with suppress(ReproError):
                record = current_record(run)
                if record.status.has_ended:
                    self.announced.add(run)
                    self._announce(run, record.status, record.seconds or 0.0)
                elif record.status is Status.RUNNING:
                    running[run] = record
                else:
                    queue = queue or record.queue
        self._show_whole(running, queue)
        self._show_runs(running)
        if not self.console.is_terminal and time.monotonic() - self.said_at >= PLAIN_SECONDS:
            self._say(running)

    def _show_whole(self, running: Mapping[Run, RunRecord], queue: str) -> None:
        done = len(self.announced) + sum(record.progress for record in running.values())
        of = f"{len(self.announced)} of {len(self.runs)} runs"
        is_waiting = not running and len(self.announced) < len(self.runs)
        what = f"{of}, {queue or 'starting'}" if is_waiting else of
        self.bar.update(self.whole, completed=done, description=what, note=self._time_left(done))

    def _show_runs(self, running: Mapping[Run, RunRecord]) -> None:
        shown = dict(list(running.items())[:LINES])
        for run in self.lines.keys() - shown.keys():
            self.bar.remove_task(self.lines.pop(run))
        for run, record in shown.items():
            if run not in self.lines:
                name = f"{record.group} seed {record.seed}"
                self.lines[run] = self.bar.add_task(name, total=1.0, note="")
            note = in_words(record.live)
            self.bar.update(self.lines[run], completed=record.progress, note=note)

    def _say(self, running: Mapping[Run, RunRecord]) -> None:
        """A line about each run under way, for who reads a log."""
        self.said_at = time.monotonic()
        for run, record in list(running.items())[:LINES]:
            words = in_words(record.live)
            share = f"{100 * record.progress:.0f} %"
            self._print(f"{run.folder.relative_to(self.study)}: {share}  {words}".rstrip())

    def _announce(self, run: Run, status: Status, seconds: float) -> None:
        if not self.console.is_terminal or status is not Status.FINISHED:
            count = len(self.announced)
            where = run.folder.relative_to(self.study)
            self._print(f"[{count}/{len(self.runs)}] {where}: {status}, {seconds:.1f} s")

    def _print(self, line: str) -> None:
        self.said_at = time.monotonic()
        self.console.print(line, markup=False, highlight=False)

    def _time_left(self, done: float) -> str:
        fresh = done - self.done_before
        elapsed = time.monotonic() - self.started
        if fresh <= 0:
            return ""
        return f"{_clock(elapsed / fresh * (len(self.runs) - done))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
