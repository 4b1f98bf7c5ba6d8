"""The studies recorded in papers' rooms (``results/<scale>.json``), and which are outdated."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.records import files
from repro.records.papers import Paper
from repro.records.provenance import paper_fingerprint

OLD = "†"  # marks a record that may be older than what is its paper's own
OLD_MEANS = f"{OLD} the paper's code has changed since, or the record does not say which ran"
# Where the runs of a record begin and what each took, as `files.write_json` writes them.
_RUNS, _SECONDS = b',\n "runs": [', re.compile(rb'\n   "seconds": ([\d.e+-]+)')


def recorded_study(paper: Paper, scale: str) -> dict[str, Any]:
    """What the paper's room holds of a study; parsed once for as long as the file is the same.

    A `UserError` says so if it is missing, or not JSON.
    """
    return _parsed(*_as_it_is(paper.results_file(scale)))


def _as_it_is(file: Path) -> tuple[Path, Hashable]:
    if not file.is_file():
        raise UserError(f"{file} does not exist.")
    return file, files.version_of(file)


@functools.cache
def _parsed(file: Path, _version: Hashable) -> dict[str, Any]:
    content: dict[str, Any] = files.read_json(file)
    return content


def _overview(paper: Paper, scale: str) -> dict[str, Any]:
    """A recorded study without its runs, which are nine tenths of it, but with their seconds."""
    return _skimmed(*_as_it_is(paper.results_file(scale)))


@functools.cache
def _skimmed(file: Path, version: Hashable) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # it cannot be read, which is said below
        head, is_as_written, runs = file.read_bytes().partition(_RUNS)
        if is_as_written:
            return {**json.loads(head + b"}"), "seconds": sum(map(float, _SECONDS.findall(runs)))}
    study = _parsed(file, version)
    return {**study, "seconds": float(sum(run["seconds"] or 0 for run in study["runs"]))}


def recorded_verdicts(paper: Paper) -> dict[str, dict[str, int]]:
    """How many claims got which verdict, for each scale with recorded results."""
    counts = {}
    for scale in paper.recorded_scales:
        given = [claim["verdict"] for claim in _overview(paper, scale)["claims"]]
        counts[scale] = {verdict: given.count(verdict) for verdict in dict.fromkeys(given)}
    return counts


def recorded_seconds(paper: Paper, scale: str) -> float:
    """How long the runs of a recorded study took, one after the other."""
    seconds: float = _overview(paper, scale)["seconds"]
    return seconds


def recorded_commit(paper: Paper, scale: str) -> str:
    """The git commit of the code that produced a recorded study, or ``unknown``."""
    return str(_overview(paper, scale)["code"].get("commit", "unknown"))


def is_outdated(paper: Paper, scale: str) -> bool:
    """Whether what is the paper's own is not known to be as it was for a recorded study."""
    produced = _overview(paper, scale)["code"].get("paper_sha256")
    return produced is None or bool(produced != paper_fingerprint(paper))
