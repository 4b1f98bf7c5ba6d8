"""A run directory holds all that is needed, is whole at any time, and tells the truth."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_outputs import rewrite_config
from omegaconf import OmegaConf
from processes import repro, start, until

from repro.errors import ReproError, UserError
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records import files
from repro.records.run import Run, Status
from repro.records.series import read_series
from repro.training.execute import execute_here
from repro.training.series import CsvLogger


def prepare(folder: Path, *typed: str, arm: str = "sgd") -> Run:
    plan = plan_study(["paper=toy", "scale=smoke", f"arm={arm}", "seed=0", *typed])
    return create_study(plan, folder / "outputs").runs[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that has ended; to be looked at only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "REPRO_CONFIG_DIR", str(Path(__file__).parents[1] / "support/toy_project/conf")
        )
        run = prepare(folder)
        assert execute_here(run) == Status.FINISHED
        yield run


def test_config_yaml_is_what_omegaconf_writes_and_reads(toy: Path) -> None:
    typed = ["paper=toy", "scale=smoke", "arm=sgd", "seed=0"]
    tricky = ["+odd.word='1e-5'", "+odd.truth='yes'", "+odd.long='ä: #'", "+odd.list=[1,null,a]"]
    plan = plan_study([*typed, *tricky])
    written = create_study(plan, toy).runs[0].folder / "config.yaml"
    assert written.read_text() == OmegaConf.to_yaml(plan.runs[0].config)
    assert OmegaConf.load(written).odd == {
        "word": "1e-5", "truth": "yes", "long": "ä: #", "list": [1, None, "a"],
    }  # fmt: skip


def test_the_directory_holds_what_was_promised(finished: Run) -> None:
    held = {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}
    assert held == {
        ".lock",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "log.txt",
        "metrics.csv",
        "overrides.yaml",
        "run.json",
        "summary.json",
    }


def test_the_manifest_says_what_the_result_rests_on(finished: Run) -> None:
    record = json.loads(finished.record_file.read_text())
    assert record["status"] == "finished"
    assert (record["paper"], record["scale"], record["arm"], record["seed"]) == (
        "toy",
        "smoke",
        "sgd",
        0,
    )
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["name"] == "digits"
    assert len(record["data"]["sha256"]) == 64
    assert len(record["code"]["sha256"]) == 16
    assert record["started"] <= record["ended"]
    assert record["seconds"] > 0
    assert record["peak_memory_mb"] > 0
    assert record["attempts"] == 1
    assert record["hardware"]["threads"] == 1


def test_the_summary_holds_finite_numbers_only(finished: Run) -> None:
    summary = json.loads(
        (finished.folder / "summary.json").read_text(),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert {"steps", "test/accuracy", "val/accuracy", "train/loss"} <= summary.keys()
    assert all(math.isfinite(value) for value in summary.values())
    assert summary["steps"] == 60


def test_the_series_has_one_row_a_step_in_order(finished: Run) -> None:
    rows = read_series(finished.folder / "metrics.csv")
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    losses = [row["train/step_loss"] for row in rows if "train/step_loss" in row]
    assert len(losses) == 12  # every five steps of sixty
    assert len([row for row in rows if "val/loss" in row]) == 3


def test_the_config_alone_suffices_in_another_process(toy: Path, finished: Run) -> None:
    copy = toy / "elsewhere"
    copy.mkdir()
    (copy / "config.yaml").write_text((finished.folder / "config.yaml").read_text())
    files.write_json(copy / "run.json", {"status": "waiting", "arm": "sgd", "seed": 0})
    code, output = repro(["resume", str(copy)], toy)
    assert code == 0, output
    again, first = Run.open(copy).summary(), finished.summary()
    assert all(again[k] == first[k] for k in first if not k.startswith("time/"))


def test_a_finished_run_is_left_alone(toy: Path, finished: Run) -> None:
    before = finished.record_file.stat().st_mtime_ns
    assert execute_here(finished) == Status.FINISHED
    assert finished.record_file.stat().st_mtime_ns == before


def test_the_status_of_a_killed_run_is_interrupted(toy: Path) -> None:
    run = prepare(toy, "training.epochs=100000")
    command = start(["resume", str(run.folder)], toy)
    until(lambda: run.status() is Status.RUNNING)
    with pytest.raises(UserError, match="executed by another process"):
        execute_here(run)
    assert run.status() is Status.RUNNING
    command.send(signal.SIGKILL)
    command.wait()
    assert json.loads(run.record_file.read_text())["status"] == "running"
    assert run.status() is Status.INTERRUPTED


def test_onlookers_do_not_keep_a_run_from_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    with lock.open() as onlooker:
        import fcntl
        import threading

        fcntl.flock(onlooker, fcntl.LOCK_SH)
        release = threading.Timer(0.05, lambda: fcntl.flock(onlooker, fcntl.LOCK_UN))
        release.start()
        with files.exclusive_lock(lock):
            assert files.is_locked(lock)
    assert not files.is_locked(lock)


def test_what_a_killed_process_left_half_written_is_removed(toy: Path) -> None:
    run = prepare(toy)
    leftover = run.folder / "checkpoints" / ".last.ckpt.abc.tmp"
    leftover.parent.mkdir()
    leftover.touch()
    with run.held():
        assert not leftover.exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    file = tmp_path / "a.json"
    files.write_json(file, {"old": 1})

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, no_space)
    with pytest.raises(ReproError, match="No space left") as error:
        files.write_json(file, {"new": 2})
    assert error.value.exit_code == 1
    assert json.loads(file.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_written_files_have_the_users_permissions(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        files.write_text(file, "x")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_in_a_line_and_can_be_resumed(toy: Path, tiny_disk: Path) -> None:
    run = prepare(tiny_disk, "training.checkpoint.every_seconds=0")
    ballast = tiny_disk / "ballast"
    free = os.statvfs(tiny_disk)
    ballast.write_bytes(bytes((free.f_bavail - 16) * free.f_bsize))  # room for notes, not weights
    assert execute_here(run) == Status.FAILED
    error = run.record().error
    assert error is not None
    assert "No space left" in error.message
    assert len(error.message.splitlines()) == 1
    assert not list(run.folder.rglob("*.tmp"))
    ballast.unlink()
    assert execute_here(run) == Status.FINISHED


def test_a_full_disk_even_for_the_manifest_raises(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(toy)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(ReproError, match="No space left"):
            execute_here(run)
    assert run.status() is Status.WAITING
    assert execute_here(run) == Status.FINISHED


def test_outputs_below_a_file_are_refused(toy: Path) -> None:
    (toy / "outputs").touch()
    with pytest.raises(UserError, match="outputs=DIR"):
        prepare(toy)


def test_a_series_repeats_no_row_after_a_resume(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    series = CsvLogger(file)
    for step in (0, 5, 5, 9):
        series.log_metrics({f"m{step}": 1.0}, step)
    series.finalize("")
    resumed = CsvLogger(file)
    resumed.continue_from(series.text(), 5)
    resumed.log_metrics({"m9": 2.0}, 9)
    resumed.finalize("")
    assert read_series(file) == [
        {"step": 0, "m0": 1.0},
        {"step": 5, "m5": 1.0},
        {"step": 9, "m9": 2.0},
    ]


class Fatal:
    """An object whose unpickling would be noticed."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("it-was-executed",)


def cut(run: Run) -> None:
    run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:5000])


def scribble(run: Run) -> None:
    run.last_checkpoint.write_bytes(b"not a checkpoint")


def smuggle(run: Run) -> None:
    torch.save({"state_dict": Fatal(), "global_step": 1}, run.last_checkpoint)


def other_model(run: Run) -> None:
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    checkpoint["state_dict"] = {"model.other": torch.zeros(3)}
    torch.save(checkpoint, run.last_checkpoint)


def other_optimizer(run: Run) -> None:
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"] = []
    torch.save(checkpoint, run.last_checkpoint)


def other_program(run: Run) -> None:
    torch.save({"state_dict": {}, "global_step": 3}, run.last_checkpoint)


def bare_weights(run: Run) -> None:
    torch.save({"weight": torch.zeros(3)}, run.last_checkpoint)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "damaged"),
        (scribble, "damaged"),
        (smuggle, "damaged"),
        (bare_weights, "damaged"),
        (other_model, "does not belong"),
        (other_optimizer, "does not belong"),
        (other_program, "does not belong"),
    ],
)
def test_bad_checkpoints_are_refused_with_a_way_out(
    toy: Path, finished: Run, damage: Any, words: str
) -> None:
    run = prepare(toy)
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.write_bytes(finished.last_checkpoint.read_bytes())
    damage(run)
    assert execute_here(run) == Status.FAILED
    error = run.record().error
    assert error is not None
    assert words in error.message
    assert "Delete it to start this run again" in error.message
    assert len(error.message.splitlines()) <= 3
    assert error.kind == "user"
    assert not Path("it-was-executed").exists()
    run.last_checkpoint.unlink()
    assert execute_here(run) == Status.FINISHED


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "repro.errors.difflib.os.system",
        "repro.records.files.os.system",
        "repro.training.execute.subprocess.Popen",
        "repro.training.stopping.signal",
        "builtins.eval",
        "torch.load",
        "torch.nn.modules.module.torch.load",
        "reproduction.evil",
        "repro",
        "",
    ],
)
@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"_target_": "torch.nn.ReLU", "a": [c]}])
def test_configs_cannot_name_code_outside_the_trusted_packages(target: str, wrap: Any) -> None:
    config = OmegaConf.create(wrap({"_target_": target, "command": "touch it-was-executed"}))
    with pytest.raises(UserError, match=re.escape(f"'{target}'")) as error:
        instantiate(config)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("place", ["model", "optimizer.lr", "dataset.augment", "logger.loggers.x"])
def test_a_config_changed_by_somebody_else_executes_nothing(toy: Path, place: str) -> None:
    run = prepare(toy)
    config = OmegaConf.load(run.folder / "config.yaml")
    evil = {"_target_": "os.system", "command": "touch it-was-executed"}
    OmegaConf.update(config, place, evil, merge=False, force_add=True)
    rewrite_config(run, OmegaConf.to_yaml(config))
    assert execute_here(run) == Status.FAILED
    error = run.record().error
    assert error is not None
    assert error.kind == "user"
    assert "'os.system'" in error.message
    assert not Path("it-was-executed").exists()


def test_a_manifest_changed_by_somebody_else_executes_nothing(toy: Path) -> None:
    run = prepare(toy)
    run.update(callback="os.system")
    assert execute_here(run) == Status.FAILED
    assert "outside the packages a config may use" in str(run.record().error)


def test_arguments_that_a_target_does_not_take_are_named(toy: Path) -> None:
    config = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 3})
    with pytest.raises(UserError, match="out_features"):
        instantiate(config)


def test_a_line_for_people_is_not_hidden_by_what_caused_it(tmp_path: Path) -> None:
    table = {"_target_": "repro.data.tables.own.csv_table", "name": "mine", "task": "regression"}
    config = OmegaConf.create({**table, "path": str(tmp_path / "none.csv"), "target": "y"})
    with pytest.raises(UserError, match=r"none\.csv cannot be read as CSV: .*No such file"):
        instantiate(OmegaConf.create({"_target_": "torch.nn.Sequential", "_args_": [config]}))


@pytest.mark.parametrize("content", ["", "a: [", "training: {epochs: 1}", "[1, 2]"])
def test_a_damaged_config_is_named(toy: Path, finished: Run, content: str) -> None:
    run = Run(toy / "run")
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(content)
    files.write_json(run.record_file, {"status": "waiting", "arm": "sgd", "seed": 0})
    with pytest.raises(UserError, match=r"config\.yaml"):
        run.config()


def test_a_foreign_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Run.open(tmp_path).status()
