"""What is shown of a study while it runs: a line a run, with measures, speed and time left."""

from __future__ import annotations

import io
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_outputs import make_study, update_json
from rich.console import Console

from repro.launching import progress
from repro.records.run import Live, Run
from repro.records.series import read_series
from repro.records.study import Study, find_studies
from repro.training import pace, series
from repro.training import watch as watching
from repro.training.series import CsvLogger
from repro.training.watch import Diverged, Watch

LIVE = {
    "steps_per_second": 123.4,
    "seconds_left": 75.0,
    "measures": {"loss": 0.25, "val/accuracy": 0.9},
}


@contextmanager
def running(folder: Path, paths: list[str]) -> Iterator[Study]:
    """A study of which some runs are under way, as far as their directories say."""
    study = Study(folder)
    with ExitStack() as stack:
        for path in paths:
            run = Run(folder / path)
            stack.enter_context(run.held())
            changes: dict[str, Any] = {"status": "running", "progress": 0.4, "live": LIVE}
            update_json(run.record_file, host=socket.gethostname(), **changes)
        yield study


def seen(study: Study, terminal: bool) -> str:
    """What one look shows."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=110, color_system=None)
    watcher = progress._Watcher(study, console)
    watcher.said_at -= progress.PLAIN_SECONDS
    watcher._look()
    if terminal:
        console.print(watcher.bar.get_renderable())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_for_each_run_under_way(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=2)
    with running(folder, ["dense/seed=0", "dgc/seed=1"]) as study:
        whole, *lines = seen(study, terminal=True).splitlines()
    assert "2 of 4 runs" in whole
    assert "70%" in whole  # two done, and two fifths of two others
    assert len(lines) == 2
    assert "dense seed 0" in lines[0]
    assert "dgc seed 1" in lines[1]
    for line in lines:
        assert "40%" in line
        assert "1:15 left  loss 0.25  val/accuracy 0.9  123 steps/s" in line


def test_plain_lines_where_no_one_watches(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=1)
    with running(folder, ["dgc/seed=0"]) as study:
        text = seen(study, terminal=False)
    assert text == "dgc/seed=0: 40 %  1:15 left  loss 0.25  val/accuracy 0.9  123 steps/s\n"


def test_hundreds_of_runs_take_a_few_lines(tmp_path: Path) -> None:
    folder = make_study(tmp_path, arms=["a"], seeds=12)
    with running(folder, [f"a/seed={seed}" for seed in range(12)]) as study:
        assert len(seen(study, terminal=True).splitlines()) == 1 + progress.LINES


def test_a_run_that_says_nothing_yet_has_its_line() -> None:
    assert progress.in_words(None) == progress.in_words(Live()) == ""
    assert progress.in_words(Live(seconds_left=3725.0)) == "1:02:05 left"


class Told:
    """Stands for a trainer."""

    global_step = 0
    estimated_stepping_batches = 8
    is_last_batch = False
    is_global_zero = True


class Clock:
    """Stands for the time."""

    now = 0.0

    def take(self, seconds: float) -> None:
        """Lets it pass."""
        self.now += seconds


def test_watching_tells_speed_and_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(pace, "SHARE", math.inf)  # even so short a report takes some time
    told: list[tuple[float, float, float | None]] = []
    watch = Watch(check_every=2, report=lambda *said: told.append(said), report_every=0.0)
    trainer: Any = Told()
    for loss in (1.0, 3.0, 5.0, 7.0):
        watch.on_train_batch_start()
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, None, torch.tensor(loss))  # type: ignore[arg-type]
    assert [(done, loss) for done, _, loss in told] == [
        (0.125, None),
        (0.25, 2.0),
        (0.375, 2.0),
        (0.5, 6.0),
    ]
    assert all(speed > 0 for _, speed, _ in told)
    lost = torch.tensor(float("nan"))
    trainer.global_step = 5
    watch.on_train_batch_end(trainer, None, lost)  # type: ignore[arg-type]
    trainer.global_step = 6
    with pytest.raises(Diverged, match="not finite at step 6"):
        watch.on_train_batch_end(trainer, None, lost)  # type: ignore[arg-type]


def test_telling_takes_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes a fifth of a second, and a step takes a tenth."""
    import torch

    clock = Clock()
    monkeypatch.setattr(watching, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    watch = Watch(check_every=50, report=lambda *_: clock.take(0.2))
    trainer: Any = Told()
    for _ in range(10_000):
        watch.on_train_batch_start()
        clock.take(0.1)
        watch.on_train_batch_end(trainer, None, torch.tensor(1.0))  # type: ignore[arg-type]
    assert clock.now == pytest.approx(1010, abs=1)


def test_a_series_takes_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(series, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("waits for the disk"))

    class Slow(CsvLogger):
        def text(self) -> str:
            clock.take(0.2)
            return super().text()

    written = Slow(tmp_path / "metrics.csv")
    for step in range(1000):
        clock.take(1.0)
        written.log_metrics({"train/loss": 1.0}, step)
        written.save()
    assert clock.now == pytest.approx(1010, abs=1)
    assert len(read_series(written.file)) > 970


def test_losses_are_looked_at_now_and_then_only() -> None:
    """Each look waits for the device."""
    import torch

    looks = []

    class Counted(Watch):
        def _look(self, step: int) -> None:
            looks.append(step)
            super()._look(step)

    watch = Counted(check_every=50, report=lambda *_: None, report_every=0.0)
    trainer: Any = Told()
    for _ in range(100):
        watch.on_train_batch_start()
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, None, torch.tensor(1.0))  # type: ignore[arg-type]
    assert looks == [50, 100]


def test_a_finished_run_is_no_longer_live(toy: Path) -> None:
    from click.testing import CliRunner
    from repro.cli.main import cli

    typed = ["run", "paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.epochs=1", "-q"]
    assert CliRunner().invoke(cli, typed).exit_code == 0
    (study,) = find_studies(Path("outputs"))
    (run,) = study.runs
    record = json.loads(run.record_file.read_text())
    assert (record["status"], record["progress"]) == ("finished", 1.0)
    assert record.get("live") is None
