"""Files that a resume or a verdict reads know when they are damaged; a state before is kept."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import timeless, unplugged
from rooms import finished, prepared
from torture import note, torture, tries

from repro.errors import UserError
from repro.records import files
from repro.records.run import Run
from repro.records.status import Status
from repro.records.study import Study
from repro.training import execute
from repro.training.checkpoints import read_checkpoint

TYPED = ("paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.checkpoint.every_steps=7")
CONFIG = Path(__file__).parents[1] / "support/toy_project/conf"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CONFIG_DIR", str(CONFIG))
        return finished(tmp_path_factory.mktemp("straight"), *TYPED)


@pytest.fixture
def killed(toy: Path) -> Run:
    """A run that was killed after its second checkpoint."""
    (run,) = prepared(toy / "outputs", *TYPED).runs
    module = type(execute.build_module(run.config()))
    with unplugged(module, lambda module, index: module.global_step >= 17):
        assert execute.execute(run.folder) == Status.INTERRUPTED
    return run


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def study_of(run: Run) -> Study:
    return Study(run.folder.parents[1])


READERS: dict[str, tuple[Callable[[Run], Path], Callable[[Run], Any]]] = {
    "last.ckpt": (
        lambda run: run.last_checkpoint,
        lambda run: read_checkpoint(run.last_checkpoint),
    ),
    "best.ckpt": (
        lambda run: run.best_checkpoint,
        lambda run: read_checkpoint(run.best_checkpoint),
    ),
    "run.json": (lambda run: run.record_file, lambda run: run.record().content()),
    "study.json": (
        lambda run: study_of(run).record_file,
        lambda run: study_of(run).about.content(),
    ),
    "config.yaml": (lambda run: run.config_file, lambda run: run.plain_config()),
    "summary.json": (lambda run: run.summary_file, lambda run: run.summary()),
    "metrics.csv": (lambda run: run.series_file, lambda run: run.series("val/loss")),
}


@torture
@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_noticed_or_does_no_harm(straight: Run, tmp_path: Path, name: str) -> None:
    place, read = READERS[name]
    shutil.copytree(straight.folder.parents[1], tmp_path / "study")
    run = Run(tmp_path / "study" / straight.folder.relative_to(straight.folder.parents[1]))
    file = place(run)
    original = file.read_bytes()
    before = read(Run(run.folder))
    noise = random.Random(name)
    tried = tries(60, 300)
    for _ in range(tried):
        bit = noise.randrange(8 * len(original))
        flip(file, bit)
        with contextlib.suppress(UserError):
            after = read(Run(run.folder))
            if name.endswith(".json"):  # an unknown key is no harm: that of the checksum, say
                after = {key: after.get(key) for key in before}
            assert is_same(after, before), bit
        file.write_bytes(original)
    note("bit flips refused or harmless", tried, tried)


def test_the_checkpoint_before_takes_over_from_a_damaged_one(killed: Run, straight: Run) -> None:
    newest = torch.load(killed.last_checkpoint, weights_only=True)["global_step"]
    before = torch.load(killed.previous_checkpoint, weights_only=True)["global_step"]
    assert (newest, before) == (14, 7)
    flip(killed.last_checkpoint, 8 * 5000)
    assert execute.execute(killed.folder) == Status.FINISHED
    assert "last.ckpt is damaged" in killed.log_file.read_text()
    assert "continuing after step 7" in killed.log_file.read_text()
    assert_as_straight(killed, straight)
    assert not killed.previous_checkpoint.exists(), "it is needed no longer"


def test_without_a_good_checkpoint_nothing_goes_on(killed: Run) -> None:
    for file in (killed.last_checkpoint, killed.previous_checkpoint):
        flip(file, 8 * 5000)
    assert execute.execute(killed.folder) == Status.FAILED
    assert "is damaged or not a checkpoint" in str(killed.record().error)
    assert killed.last_checkpoint.exists()


@pytest.mark.parametrize("damage", ["", "step,epoch\n1", None, "step,epoch,val/loss\n0,0,9\n"])
def test_a_resumed_series_is_whole_whatever_became_of_its_file(
    killed: Run, straight: Run, damage: str | None
) -> None:
    killed.series_file.unlink(missing_ok=True)
    if damage is not None:
        killed.series_file.write_text(damage)
    assert execute.execute(killed.folder) == Status.FINISHED
    assert_as_straight(killed, straight)


def assert_as_straight(run: Run, straight: Run) -> None:
    assert timeless(run) == timeless(straight)
    assert run.series_file.read_bytes() == straight.series_file.read_bytes()


def test_a_checkpoint_of_earlier_versions_is_read(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    state = {"state_dict": {"w": torch.ones(1000)}, "global_step": 3}
    torch.save(state, file)
    assert is_same(read_checkpoint(file), state)
    flip(file, 8 * 1500)
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(file)


def test_what_is_written_by_hand_is_believed(straight: Run, tmp_path: Path) -> None:
    shutil.copytree(straight.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    content = files.read_json(run.record_file)
    files.write_json(run.record_file, content | {"seed": 7})
    with pytest.raises(UserError, match=r"run\.json is damaged.*take the line"):
        run.record()
    del content["checksum"]
    files.write_json(run.record_file, content | {"seed": 7})
    assert run.record().seed == 7


def test_a_disk_that_fills_up_within_a_checkpoint_is_said_so(
    toy: Path, straight: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = prepared(toy / "outputs", *TYPED).runs
    room = 30_000  # bytes: less than the second checkpoint takes, too

    class Disk(files._Summing):
        def write(self, content: bytes) -> int:
            nonlocal room
            room -= len(content)
            if room < 0:
                with monkeypatch.context() as patch:
                    patch.setattr(self, "file", FullFile())
                    return super().write(content)
            return super().write(content)

    class FullFile:
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_Summing", Disk)
        assert execute.execute(run.folder) == Status.FAILED
    error = run.record().error
    assert error is not None
    assert error.message.startswith("No space left on the disk of")
    assert not list(run.folder.rglob(".*.tmp"))
    assert execute.execute(run.folder) == Status.FINISHED
    assert_as_straight(run, straight)
