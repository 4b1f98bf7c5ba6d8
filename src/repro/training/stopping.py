"""When a run is to save its state and stop: signals, and the death of who started its process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARENT_VARIABLE = "REPRO_PARENT"  # the process that started workers; they do not outlive it
GRACE_SECONDS = 30.0  # for a process whose parent died
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a polite request; a second one is final.

    A closed terminal (SIGHUP) says so more than once, and is no second request. Who asked for it to
    be ignored, as nohup does, gets that.

    The death of the command that started this process for a run is such a request, too.

    Args:
        folder: of the run; once it was deleted there is nothing to be polite about.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signalled = False
        self.parent = parent_of_worker()
        self.tell: Callable[[int], Any] | None = None  # for who else should hear of signals
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in STOPPING:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            try:
                self.previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: its owner handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether this process should save and stop."""
        return self.signalled or (self.parent is not None and os.getppid() != self.parent)

    def _handle(self, number: int, _frame: Any) -> None:
        is_second = self.signalled and number != signal.SIGHUP
        self.signalled = True
        if self.tell is not None:
            self.tell(number)
        elif is_second or not self.folder.is_dir():
            raise KeyboardInterrupt


def parent_of_worker() -> int | None:
    """The process that started this one for a run, if one did."""
    parent = os.getppid()
    return parent if os.environ.get(PARENT_VARIABLE) == str(parent) else None


def do_not_outlive(parent: int) -> None:
    """Ends this process some time after its parent, should it be waiting for something else."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(GRACE_SECONDS)  # in which training saves its state
    os._exit(1)
