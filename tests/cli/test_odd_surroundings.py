"""Odd input and odd surroundings: a line that says what is wrong, and nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_outputs import make_study, update_json
from processes import repro
from repro.cli.main import cli

from repro.planning import compose
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run
from repro.records.study import Study, find_studies
from repro.training.stopping import StopRequest

TOY = ["run", "paper=toy", "scale=smoke", "arm=sgd", "seed=0", "n_jobs=1"]
SUPPORT = Path(__file__).parents[1] / "support"
INSTALLED = [sys.executable, "-P", "-m", "repro.cli.main"]


def invoke(*typed: str) -> Result:
    return CliRunner().invoke(cli, list(typed))


def refusal(*typed: str) -> str:
    result = invoke(*typed)
    assert result.exit_code == 2, result.output
    assert "fault of repro" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("arm=[]", "arm takes one arm or a list of some: sgd"),
        ("arm@x=[]", "arm takes one arm or a list of some: sgd"),
        ("hardware.num_nodes=1000", "takes a cluster"),
        ("+hardware.launcher.x.y=1", "hardware.launcher: "),
        ("+hardware.launcher.x=1", "hydra.launcher.x"),
        ("+hardware.launcher._target_=os.system", "hardware.launcher"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    toy: Path, typed: str, said: str
) -> None:
    command = [each for each in TOY if not (typed.startswith("arm") and each.startswith("arm"))]
    assert said in refusal(*command, typed)
    assert said in refusal(*command, typed, "--dry-run")
    assert not list(toy.iterdir())


@pytest.mark.parametrize(
    "name",
    ["${seed}", "a${b", "\\${x}", "it's", "back\\slash", "\\'", "end\\", "new\nline", "{a,b}"],
)
def test_any_folder_name_survives_hydra(name: str) -> None:
    with compose.hydra_ready():
        texts = [f"run={compose.quoted(name)}", "study=x"]
        assert compose.compose_config(texts, "launch").run == name


def test_a_folder_with_an_interpolation_in_its_name_is_a_folder(toy: Path) -> None:
    folder = toy / "${seed} 'x'"
    folder.mkdir()
    code, output = repro([*TOY, "training.max_steps=1", "-q"], folder)
    assert code == 0, output
    assert [run.status() for s in find_studies(folder / "outputs") for run in s.runs] == [
        "finished"
    ]


@pytest.mark.parametrize("content", ["null", "[]", "3", '{"arm": 1}', "{", "\xff", "[" * 9999])
def test_damaged_records_are_named(tmp_path: Path, content: str) -> None:
    study = Study(make_study(tmp_path / "outputs"))
    for file in (study.runs[0].record_file, study.record_file):
        before = file.read_bytes()
        file.write_bytes(content.encode("latin-1"))
        for verb in (["status"], ["resume"]):
            said = refusal(*verb, str(study.folder))
            assert f"{file} cannot be read" in said
        file.write_bytes(before)


@pytest.mark.parametrize("content", [b"\xff", b"[]", None, "folder"])
def test_compare_names_a_damaged_config(tmp_path: Path, content: Any) -> None:
    first, second, *_ = Study(make_study(tmp_path)).runs
    second.config_file.unlink()
    if content == "folder":
        second.config_file.mkdir()
    elif content is not None:
        second.config_file.write_bytes(content)
    assert str(second.config_file) in refusal("compare", str(first.folder), str(second.folder))


def test_a_study_stopped_while_it_is_prepared_is_not_there(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def create(folder: Path, *_: Any) -> None:
        folder.mkdir(parents=True)
        written.append(folder)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "create", create)
    result = invoke(*TOY[:4])
    assert result.exit_code == 130
    assert "Nothing was started." in result.stderr
    assert not [each for each in (toy / "outputs").rglob("*") if each.name[:1].isdigit()]


def test_half_written_files_of_a_study_are_removed(toy: Path) -> None:
    study = create_study(plan_study([*TOY[1:], "training.max_steps=1"]), toy / "outputs")
    study.figures_folder.mkdir()
    left = [study.figures_folder / ".a.svg.x.tmp", study.folder / ".verdicts.json.x.tmp"]
    for file in left:
        file.touch()
    assert invoke("resume", "-q").exit_code == 0
    assert not any(file.exists() for file in left)
    left[-1].touch()  # also where nothing is left to do
    assert invoke("resume", "-q").exit_code == 0
    assert not left[-1].exists()


def test_the_newest_study_is_the_one_that_was_created_last(tmp_path: Path) -> None:
    names = ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_10", "a"]
    hours = ["00", "00", "00", "05"]
    for name, hour in zip(names, hours, strict=True):
        folder = make_study(tmp_path)
        moment = f"2026-01-02T{hour}:04:05+00:00"
        update_json(folder / "study.json", created=moment)
        folder.rename(folder.with_name(name))
    assert [study.folder.name for study in find_studies(tmp_path)] == names


@pytest.mark.parametrize("verb", ["list", "show toy", "status", "report"])
def test_a_terminal_that_knows_no_unicode_shows_what_it_can(toy: Path, verb: str) -> None:
    make_study(toy / "outputs", typed=["paper=ü"])
    poor = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "POSIX"}
    done = run([*INSTALLED, *verb.split()], toy, **poor)
    assert (done.returncode, done.stderr) == (0, b"")


def test_who_reads_on_no_longer_is_no_error(toy: Path) -> None:
    for verb in ("list", "show toy", "run paper=toy --cfg"):
        command = f"{' '.join(INSTALLED)} {verb} | head -c 1; exit ${{PIPESTATUS[0]}}"
        done = run(["bash", "-c", command], toy)
        assert (done.returncode, done.stderr) == (0, b""), verb


def test_a_study_goes_on_when_nothing_can_be_printed(toy: Path) -> None:
    typed = " ".join([*INSTALLED, *TOY, "training.max_steps=1"])
    done = run(["bash", "-c", f"{typed} > /dev/full"], toy)
    assert done.returncode == 1
    assert done.stderr.count(b"cannot be written: No space left") == 1
    assert [run.status() for s in find_studies(toy / "outputs") for run in s.runs] == ["finished"]


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), **more}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("x.so: failed to map segment from shared object")]
)
def test_too_little_memory_is_said(
    toy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("repro.records.papers.load_papers", fail)
    result = invoke("list")
    assert result.exit_code == 1
    assert "not enough memory" in result.stderr
    assert "fault of repro" not in result.stderr


def test_what_may_not_be_read_is_no_fault_of_ours(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "mine")

    monkeypatch.setattr("repro.records.papers.load_papers", fail)
    result = invoke("list")
    assert (result.exit_code, result.stderr) == (1, "repro: mine: Permission denied.\n")


def test_a_closed_terminal_is_heard_unless_nohup_asked_otherwise() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest(Path()) as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopRequest(Path()) as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # shells say so once more
        assert stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
