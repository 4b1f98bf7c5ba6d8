"""A run that was killed, by whatever signal and wherever, ends with the bits of a straight one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import repro

from repro.engine.series import read_series
from repro.engine.study import Study, find_studies

ONE_RUN = ["run", "paper=toy", "scale=smoke", "arm=sgd", "seed=0", "n_jobs=1", "-q"]
OFTEN = ["training.checkpoint.every_seconds=0"]
MID_EPOCH = ["training.checkpoint.every_steps=7"]
SETTINGS = {
    "epochs": OFTEN,
    "steps": MID_EPOCH,
    "adam": [*MID_EPOCH, "optimizer=adam"],
    "plateau": [*MID_EPOCH, "schedule=plateau", "training.test_with=best"],
    "max_steps": [*MID_EPOCH, "training.max_steps=35"],
    "lstm": [
        *MID_EPOCH,
        "dataset=stdlib_text",
        "dataset.max_bytes=40000",
        "model=lstm",
        "model.hidden=8",
        "model.embedding=8",
        "model.layers=2",
        "model.dropout=0.2",
        "model.stateful=true",
        "training.monitor=val/loss",
        "training.mode=min",
    ],
}


@dataclass(frozen=True)
class Outcome:
    """What must not depend on interruptions."""

    summary: dict[str, Any]
    series: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]


def only_study(folder: Path) -> Study:
    (study,) = find_studies(folder / "outputs")
    return study


def outcome(folder: Path, run: int = 0) -> Outcome:
    done = only_study(folder).runs[run]
    assert done.status() == "finished", (folder / "output-0.txt").read_text()
    checkpoint = torch.load(done.last_checkpoint, weights_only=True)
    return Outcome(
        {k: v for k, v in done.summary().items() if not k.startswith("time/")},
        read_series(done.folder / "metrics.csv"),
        checkpoint["state_dict"],
    )


def assert_same(left: Outcome, right: Outcome) -> None:
    assert left.summary == right.summary
    assert left.series == right.series
    assert left.weights.keys() == right.weights.keys()
    for name, tensor in left.weights.items():
        assert torch.equal(tensor, right.weights[name]), name


def event(folder: Path, what: str, at: str, arm: str = "sgd") -> dict[str, str]:
    once = str(folder / "it-happened")
    return {"TOY_EVENT": json.dumps({"what": what, "at": at, "arm": arm, "once": once})}


def interrupt(
    folder: Path, what: str, at: str, overrides: Sequence[str], exit_code: int
) -> dict[str, str]:
    environment = event(folder, what, at)
    code, output = repro([*ONE_RUN, *overrides], folder, environment)
    assert code == exit_code, output
    assert only_study(folder).runs[0].status() == "interrupted"
    return environment


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Outcomes of runs that nothing interrupted, by setting; filled on demand."""
    return {}


@pytest.fixture
def uninterrupted(
    toy: Path, straight: dict[str, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    def get(setting: str) -> Outcome:
        if setting not in straight:
            folder = tmp_path_factory.mktemp(setting)
            code, output = repro([*ONE_RUN, *SETTINGS[setting]], folder)
            assert code == 0, output
            straight[setting] = outcome(folder)
        return straight[setting]

    return get


@pytest.mark.parametrize(
    ("setting", "at"),
    [
        ("epochs", "step 3"),  # before there is any checkpoint
        ("epochs", "step 30"),
        ("epochs", "validation 1"),  # between the last batch of an epoch and its checkpoint
        ("epochs", "test"),  # between the last checkpoint and the summary
        ("steps", "step 14"),  # just before the checkpoint of that step
        ("steps", "step 15"),
        ("steps", "step 20"),  # the last batch of an epoch
        ("steps", "validation 2"),
        ("steps", "test"),
        ("adam", "step 30"),
        ("plateau", "step 50"),
        ("plateau", "test"),
        ("max_steps", "step 30"),
        ("max_steps", "step 35"),
        ("max_steps", "test"),
        ("lstm", "step 30"),
    ],
)
def test_killed_run_ends_with_the_same_bits(
    toy: Path, uninterrupted: Any, setting: str, at: str
) -> None:
    environment = interrupt(toy, "SIGKILL", at, SETTINGS[setting], exit_code=-9)
    code, output = repro(["resume", "-q"], toy, environment)
    assert code == 0, output
    assert_same(outcome(toy), uninterrupted(setting))
