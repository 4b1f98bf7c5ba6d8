"""Completion in real, interactive shells; bash cuts words at equals signs, zsh does not."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


STARTS = {
    "bash": (["--norc", "--noprofile", "-i"], ""),
    "zsh": (["-f", "-i"], "autoload -Uz compinit; compinit -u -D; "),
}
SHELLS = [name for name in STARTS if shutil.which(name)]


class Shell:
    """A shell at a terminal of its own, which has read the completion script."""

    def __init__(self, name: str) -> None:
        arguments, first = STARTS[name]
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.environ.update(PATH=f"{BIN}:{os.environ['PATH']}", PS1="$ ", TERM="dumb")
            os.execvp(name, [name, *arguments])
        self.type(f'{first}eval "$(repro completion {name})"; echo re""ady\n', until="ready")

    def type(self, keys: str, until: str) -> str:
        """Types keys; returns what is shown then, as soon as some text is in it."""
        os.write(self.terminal, keys.encode())
        shown, end = "", time.monotonic() + 120
        while until not in shown and time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.1)[0]:
                shown += os.read(self.terminal, 65536).decode().replace("\a", "")
        return shown

    def close(self) -> None:
        """Ends it."""
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.terminal)


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Each shell that is here; `.ci/run` sees to both."""
    opened = Shell(request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("repro ru", "repro run "),
        ("repro run pap", "repro run paper="),
        ("repro run paper=gs", "repro run paper=gsae "),
        ("repro run paper=dgc arm=dense", "repro run paper=dgc arm=dense "),
        ("repro run paper=dgc method.ra", "repro run paper=dgc method.ratio="),
        ("repro run dgc method.ra", "repro run dgc method.ratio="),
        ("repro show gradient_n", "repro show gradient_noise "),
        ("repro run gs", "repro run gsae "),
    ],
)
def test_the_tabulator_key(shell: Shell, typed: str, completed: str) -> None:
    shown = shell.type(f"{typed}\t", until=completed)
    shell.type("\x15", until="")  # clears the line
    assert completed in shown
    assert not (completed.endswith("=") and f"{completed} " in shown)
