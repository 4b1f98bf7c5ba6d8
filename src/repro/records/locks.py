"""One executor a study: a lock that says who holds it, and that no dead process keeps.

The system frees a lock when its process dies, and most file systems that machines share tell each
other of locks. Where one does not, the lock's file itself tells: whoever holds it touches it now
and then, so that a machine that is gone is known by its silence.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from repro.errors import UserError
from repro.records import files
from repro.records.typed import Moment, Record, now

BEAT_SECONDS = 20.0
SILENT_SECONDS = 120.0  # without a beat: whoever held the lock on another machine is gone


class Holder(Record):
    """The content of a lock's file while somebody holds it."""

    host: str
    pid: int
    since: Moment

    def __str__(self) -> str:
        """Who it is, in words."""
        local = self.since.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} since {local}"


@contextmanager
def held_alone(path: Path) -> Iterator[None]:
    """Holds the lock ``path`` of the folder that it lies in.

    A `UserError` says so if somebody holds it already, or the file cannot be written.
    """
    files.check_allowed(path)
    with files.explaining(path):
        file = path.open("a+", encoding="utf-8")
    with file:
        _acquire(file, path)
        holder = Holder(host=socket.gethostname(), pid=os.getpid(), since=now())
        _write(file, json.dumps(holder.content()))
        ended = threading.Event()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            _write(file, "")


def holder_of(path: Path) -> str | None:
    """Who holds a lock, in words; None if nobody does that this machine can see."""
    if not files.is_locked(path):
        return None
    with path.open(encoding="utf-8") as file:
        return str(_holder(file) or "somebody")


def _acquire(file: IO[str], path: Path) -> None:
    """Takes the lock.

    Raises:
        UserError: somebody holds it.
    """
    if not files.try_lock(file):
        raise UserError(f"{path.parent} is being executed by {_holder(file) or 'somebody'}.")
    before = _holder(file)
    if before is None or before.host == socket.gethostname():
        return
    silent = _seconds_since_beat(path)
    if silent < SILENT_SECONDS:
        raise UserError(
            f"{path.parent} is being executed by {before}, which was there {silent:.0f} s ago. "
            f"If it is gone, this works in {SILENT_SECONDS - silent:.0f} s."
        )


def _holder(file: IO[str]) -> Holder | None:
    """Who holds the lock, or held it and was killed; None if nobody does or it is not known."""
    file.seek(0)
    try:
        return Holder.model_validate_json(file.read())
    except ValueError:
        return None


def _write(file: IO[str], text: str) -> None:
    with suppress(OSError):  # a full disk is no reason not to hold, or not to free, a lock
        file.truncate(0)
        file.write(text)  # at the end, which is the beginning: it is open to append
        file.flush()


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _seconds_since_beat(path: Path) -> float:
    """By the clock of the file system alone: those of two machines may differ."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=files.TEMPORARY) as probe:
        return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime
