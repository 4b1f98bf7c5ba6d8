"""Completion in a real, interactive bash, which cuts words at equals signs."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


class Bash:
    """A bash at a terminal of its own."""

    def __init__(self) -> None:
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.environ.update(PATH=f"{BIN}:{os.environ['PATH']}", PS1="$ ")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

    def type(self, keys: str, until: str) -> str:
        """Types keys; returns what is shown then, as soon as some text is in it."""
        os.write(self.terminal, keys.encode())
        shown, end = "", time.monotonic() + 120
        while until not in shown and time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.1)[0]:
                shown += os.read(self.terminal, 65536).decode()
        return shown

    def close(self) -> None:
        """Ends it."""
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.terminal)


@pytest.fixture(scope="module")
def bash() -> Iterator[Bash]:
    """A bash that has read the completion script."""
    shell = Bash()
    shell.type('eval "$(repro completion bash)"; echo re""ady\n', until="ready")
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("repro ru", "repro run "),
        ("repro run pap", "repro run paper="),
        ("repro run paper=gs", "repro run paper=gsae "),
        ("repro run paper=dgc arm=dense", "repro run paper=dgc arm=dense "),
        ("repro run paper=dgc method.ra", "repro run paper=dgc method.ratio="),
        ("repro show gradient_n", "repro show gradient_noise "),
    ],
)
def test_the_tabulator_key(bash: Bash, typed: str, completed: str) -> None:
    shown = bash.type(f"{typed}\t", until=completed)
    bash.type("\x15", until="")  # clears the line
    assert completed in shown
