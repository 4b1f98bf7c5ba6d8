"""Kills at random moments, by signals of every kind: a resumed study ends with the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import Command, repro, start, until
from torture import note, torture, tries

from repro.records.study import Study, find_studies

STUDY = ["run", "paper=toy", "scale=smoke", "arm=[sgd,tuned]", "seed=0", "-q", "n_jobs=1",
         "training.epochs=6", "training.checkpoint.every_steps=9"]  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CONFIG = str(Path(__file__).parents[1] / "support/toy_project/conf")


def bits(study: Study) -> dict[str, Any]:
    """All that must not depend on what happened along the way."""
    held: dict[str, Any] = {"verdicts": study.verdicts_file.is_file()}
    for run in study.runs:
        name = str(run.folder.relative_to(study.folder))
        timeless = {k: v for k, v in run.summary().items() if not k.startswith("time/")}
        held[name] = (str(run.status()), timeless, run.series_file.read_bytes())
    return held


def leftovers(study: Study) -> list[Path]:
    found = [*study.folder.rglob(".*.tmp"), *study.folder.rglob("previous.ckpt")]
    return [file for file in found if file.is_file()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The bits of a study that nobody killed, and the seconds that it computed."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CONFIG_DIR", CONFIG)
        command = start(STUDY, folder)
        computed = 0.0

        def ended() -> bool:
            nonlocal computed
            computed = max(computed, command.seconds())
            return command.process.exitcode is not None

        until(ended)
    assert command.wait() == 0, command.output()
    return bits(find_studies(folder / "outputs")[0]), computed


def kill(command: Command, moment: float, number: signal.Signals, group: bool) -> int:
    """Sends a signal when a command has computed for so long; returns its exit code."""
    until(lambda: command.seconds() >= moment or command.process.exitcode is not None)
    if command.process.exitcode is None:
        assert command.process.pid is not None
        (os.killpg if group else os.kill)(command.process.pid, number)
    return command.wait()


@torture
def test_random_kills_change_no_bit(toy: Path, straight: tuple[dict[str, Any], float]) -> None:
    expected, computed = straight
    noise = random.Random(7)
    tried = tries(4, 60)
    for attempt in range(tried):
        shutil.rmtree(toy / "outputs", ignore_errors=True)
        words, said = STUDY, []
        for _ in range(noise.choice([1, 1, 2])):
            moment, number = computed * noise.random(), noise.choice(SIGNALS)
            said.append((words[0], round(moment, 2), number.name))
            command = start(words, toy)
            code = kill(command, moment, number, noise.random() < 0.5)
            assert code in (0, 130, -number), (attempt, said, command.output())
            words = ["resume", "-q"] if find_studies(toy / "outputs") else STUDY
        code, output = repro(words, toy)
        assert code == 0, (attempt, said, output)
        study = find_studies(toy / "outputs")[-1]
        assert bits(study) == expected, (attempt, said)
        assert not leftovers(study), (attempt, said)
    note("kills resumed bit for bit", tried, tried)


def limited(folder: Path, kilobytes: int) -> Command:
    """Starts the study where no file may become larger than that."""
    return start(STUDY, folder, {"TEST_FILE_LIMIT": str(kilobytes << 10)})


@torture
def test_a_file_that_cannot_grow_is_said_and_the_resumed_study_has_the_same_bits(
    toy: Path, straight: tuple[dict[str, Any], float]
) -> None:
    sizes = (12, 2, 4, 6, 8, 10, 16, 20, 24)[: tries(1, 9)]
    for kilobytes in sizes:
        shutil.rmtree(toy / "outputs", ignore_errors=True)
        command = limited(toy, kilobytes)
        code = command.wait()
        assert "fault of repro" not in command.output()
        assert "Traceback" not in command.output()
        if code == 0:  # nothing was that large
            continue
        assert "File too large" in command.output(), command.output()
        if find_studies(toy / "outputs"):
            code, output = repro(["resume", "-q"], toy)
            assert code == 0, output
            assert bits(find_studies(toy / "outputs")[0]) == straight[0]
    note("full disks said and resumed", len(sizes), len(sizes))


@torture
def test_folders_that_vanish_are_said(toy: Path) -> None:
    names = ("outputs", "run", "checkpoints", "run.json", "study.json")[: tries(1, 5)]
    for name in names:
        shutil.rmtree(toy / "outputs", ignore_errors=True)
        command = start([*STUDY[:-2], "training.epochs=100000", STUDY[-1]], toy)
        until(lambda: any((toy / "outputs").rglob("last.ckpt")))
        study = find_studies(toy / "outputs")[0]
        run = study.runs[0]
        place = {
            "outputs": toy / "outputs",
            "run": run.folder,
            "checkpoints": run.checkpoints_folder,
            "run.json": run.record_file,
            "study.json": study.record_file,
        }[name]
        place.rename(toy / f"vanished_{name}")  # at once, where rmtree meets files that come anew
        if name in ("checkpoints", "study.json"):  # it may well go on
            command.send(signal.SIGTERM)
        assert command.wait() in (1, 2, 130), command.output()
        assert "Traceback" not in command.output()
        assert "fault of repro" not in command.output(), command.output()
    note("vanished folders said", len(names), len(names))
