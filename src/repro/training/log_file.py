"""A run's log.txt: what the engine, Lightning and warnings say while it is executed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class _Log(logging.FileHandler):
    """A log whose lines may get lost: what stands where nothing can be written says so itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Prints no traceback for each line that a full disk does not take."""

    def close(self) -> None:
        """Closes the file, whether or not the last lines fit."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Sends log messages and warnings of a run to its log.txt instead of the terminal."""
    handler = _Log(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    levels = {
        "repro": logging.INFO,
        "lightning.pytorch": logging.WARNING,
        "lightning.fabric": logging.WARNING,
        "py.warnings": logging.WARNING,
    }
    loggers = [logging.getLogger(name) for name in levels]
    before = [(each.handlers[:], each.propagate, each.level) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [handler], False
        each.setLevel(levels[each.name])
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("once")
            yield
    finally:
        logging.captureWarnings(False)
        for each, (handlers, propagate, level) in zip(loggers, before, strict=True):
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
        handler.close()
