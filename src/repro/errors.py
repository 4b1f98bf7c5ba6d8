"""Errors meant for people: one to three clear lines, and the exit code they deserve."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130  # the exit code that a shell reports for Ctrl-C


class ReproError(Exception):
    """A failure whose message is complete for the person who reads it."""

    exit_code = 1


class UserError(ReproError):
    """The command, a config or an input is wrong; the message says how to put it right."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
