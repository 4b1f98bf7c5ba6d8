"""The verbs: what they print, for people and for scripts, how fast, and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_outputs import claim, make_study
from repro.cli import render
from repro.cli.main import cli

from repro.claims.outcomes import Verdict
from repro.records.papers import load_paper
from repro.records.study import Study, find_studies

CONFIG = Path(__file__).parents[1] / "support" / "toy_project" / "conf"
SUPPORT = Path(__file__).parents[1] / "support"
REPRO = [sys.executable, "-c", "from repro.cli.main import main; main()"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "REPRO_CONFIG_DIR": str(CONFIG)}
    return subprocess.run(
        [*REPRO, *arguments], env=environment, text=True, capture_output=True, **options
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A finished study of one arm; to be looked at only. Its folder is the current one."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CONFIG_DIR", str(CONFIG))
        patch.chdir(folder)
        result = call(
            *("run", "paper=toy", "scale=smoke", "arm=[sgd,adam]", "seeds=[0,1]", "n_jobs=1"),
            *("training.epochs=1", "--json"),
        )
        assert result.exit_code == 0, result.output
        assert [claim["id"] for claim in json.loads(result.stdout)["claims"]] == ["T1"]
        (found,) = find_studies(Path("outputs"))
        yield found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal of 80 columns."""
    monkeypatch.setattr(render.console, "width", 80)
    return 80


def lines(result: Result) -> list[str]:
    """What a command printed; no line is wider than a narrow terminal."""
    assert result.exit_code == 0, result.output
    printed = result.stdout.splitlines()
    assert max(map(len, printed)) <= 80
    return printed


def test_list_names_every_paper(toy: Path) -> None:
    listed = json.loads(call("list", "--json").stdout)
    assert {"slug": "toy", "title": "A toy among papers"}.items() <= next(
        paper for paper in listed if paper["slug"] == "toy"
    ).items()
    assert "A toy among papers" in call("list").stdout


def test_list_says_each_title_once_and_every_recorded_scale(narrow: int) -> None:
    printed = lines(call("list"))
    assert sum(line.startswith("dgc ") for line in printed) == 1
    (row,) = [line for line in printed if line.split()[:1] == ["mini_table1"]]
    (listed,) = [p for p in json.loads(call("list", "--json").stdout) if p["slug"] == "dgc"]
    assert re.fullmatch(r"  mini_table1( †)?( +\d+)+", row)
    after = printed[next(n for n, line in enumerate(printed) if line.startswith("dgc ")) :]
    assert [line.split()[0] for line in after if line.startswith("  ")][:2] == [*listed["recorded"]]


def test_data_list_fits_a_terminal_and_says_what_there_is_to_fetch(
    narrow: int, tmp_path: Path
) -> None:
    sets = json.loads(call("data", "list", "--json").stdout)
    printed = lines(call("data", "list", "--root", str(tmp_path)))
    assert len(printed) < 3 * len(sets)
    starts = {line.split()[0]: line for line in printed if not line.startswith(" ")}
    assert re.match(r"imagenet +no, 156 GB ", starts["imagenet"])
    assert re.match(r"digits +built in ", starts["digits"])


def test_a_large_download_starts_only_if_somebody_says_so(tmp_path: Path) -> None:
    result = call("data", "fetch", "imagenet", "--root", str(tmp_path))
    assert result.exit_code == 2
    assert f"156 GB to {tmp_path}. To start it: repro data fetch imagenet --yes" in result.stderr


def test_config_dir_brings_a_papers_room_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CONFIG_DIR", "")  # not delenv: what --config-dir sets must be undone
    assert "toy" not in call("list").stdout
    assert "toy" in call("list", "--config-dir", str(CONFIG)).stdout


def test_show_tells_claims_arms_scales_and_knobs(toy: Path) -> None:
    shown = call("show", "toy").stdout
    for words in ("Does the engine keep its promises?", "T1", "tuned_twice", "smoke", "lr"):
        assert words in shown
    described = json.loads(call("show", "toy", "--json").stdout)
    assert described["arms"]["adam"] == ["optimizer=adam", "optimizer.lr=0.003"]
    result = call("show", "tyo")
    assert result.exit_code == 2
    assert "Did you mean 'toy'" in result.stderr


def test_status_shows_studies_and_runs(study: Study) -> None:
    (row,) = json.loads(call("status", "--json").stdout)
    assert (row["paper"], row["scale"], row["runs"]) == ("toy", "smoke", {"finished": 4})
    runs = json.loads(call("status", str(study.folder), "--json").stdout)
    assert [run["status"] for run in runs] == ["finished"] * 4
    assert "4 finished" in call("status").stdout
    assert "sgd/seed=0" in call("status", str(study.folder)).stdout


def test_status_without_studies_says_how_to_start(toy: Path) -> None:
    assert "repro run SLUG" in call("status").stdout
    assert json.loads(call("status", "--json").stdout) == []
    result = call("resume")
    assert result.exit_code == 2
    assert "repro run SLUG" in result.stderr
    result = call("status", "nowhere")
    assert result.exit_code == 2
    assert "not a study" in result.stderr


def test_compare_names_settings_and_results_that_differ(study: Study) -> None:
    first, other_seed, other_arm = (study.runs[n].folder for n in (0, 1, 2))
    compared = json.loads(call("compare", str(first), str(other_arm), "--json").stdout)
    assert compared["config"]["optimizer._target_"] == ["torch.optim.SGD", "torch.optim.Adam"]
    compared = json.loads(call("compare", str(first), str(other_seed), "--json").stdout)
    assert compared["config"] == {"seed": [0, 1], "dataset.seed": [0, 1]}
    assert "test/loss" in compared["summary"]
    text = call("compare", str(first), str(first)).stdout
    assert "Settings that differ: none" in text
    assert call("compare", str(first), "nowhere").exit_code == 2


def test_several_runs_are_compared_under_short_names(study: Study) -> None:
    folders = [str(run.folder) for run in study.runs[:3]]
    compared = json.loads(call("compare", *folders, "--json").stdout)
    assert compared["config"]["seed"] == [0, 1, 0]
    text = call("compare", *folders).stdout
    assert f"in {study.folder}" in text.replace("\n", "")
    assert re.search(r"sgd/ +sgd/ +adam/ *\n +seed=0 +seed=1 +seed=0", text)
    assert text.replace("\n", "").count(str(study.folder)) == 1


def test_many_runs_are_compared_in_tables_below_each_other(study: Study, narrow: int) -> None:
    folders = [str(run.folder) for run in study.runs]
    printed = lines(call("compare", *folders))
    rows = [line.split()[1:] for line in printed if line.startswith("dataset.seed ")]
    assert len(rows) > 1
    assert [seed for row in rows for seed in row] == ["0", "1", "0", "1"]


def test_studies_are_compared_by_their_claims_and_arms(study: Study, tmp_path: Path) -> None:
    first = make_study(tmp_path, verdicts=[claim("C1", Verdict.SUPPORTED)])
    later = make_study(
        tmp_path,
        created=datetime(2026, 3, 2),
        arms=["dense", "random"],
        verdicts=[claim("C1", Verdict.NOT_SUPPORTED)],
        typed=["paper=dgc", "seeds=[0,1,2]"],
    )
    compared = json.loads(call("compare", str(first), str(later), "--json").stdout)
    assert compared["claims"] == {
        "C1": ["✓ supported  +0.8 [−0.2, +1.9] points", "✗ not supported  +0.8 [−0.2, +1.9] points"]
    }
    assert compared["config"]["typed"][1] == "paper=dgc seeds=[0,1,2]"
    assert compared["arms"]["random, test/accuracy"][0] is None
    assert "dense, test/accuracy" not in compared["arms"]  # the same numbers
    assert "✗ not supported" in call("compare", str(first), str(later)).stdout
    for wrong in ([str(first)], [str(first), str(first / "dense/seed=0")]):
        assert call("compare", *wrong).exit_code == 2


def test_resume_of_a_finished_study_only_reports(study: Study) -> None:
    before = [run.record_file.stat().st_mtime_ns for run in study.runs]
    result = call("resume", "-q")
    assert result.exit_code == 0
    assert "test/" in result.stdout
    assert [run.record_file.stat().st_mtime_ns for run in study.runs] == before


def test_dry_run_lists_runs_and_costs(study: Study) -> None:
    result = call("run", "paper=toy", "scale=smoke", "--dry-run")
    assert "8 runs" in result.stdout
    assert result.stdout.count("scale=smoke") == 1  # what all runs share stands once
    assert "Nothing was started" in result.stdout
    planned = json.loads(call("run", "paper=toy", "scale=smoke", "--dry-run", "--json").stdout)
    assert len(planned["runs"]) == 8
    assert [run["layer"] for run in planned["runs"]] == [0, 0, 0, 0, 1, 1, 2, 2]
    known = {run["folder"].split("/")[0]: run["seconds"] for run in planned["runs"]}
    assert known["sgd"] > 0
    assert known["tuned"] is None
    assert len(find_studies(Path("outputs"))) == 1


def test_cfg_prints_the_first_runs_config(toy: Path) -> None:
    from omegaconf import OmegaConf

    printed = OmegaConf.create(call("run", "paper=toy", "arm=adam", "seed=5", "--cfg").stdout)
    assert (printed.arm, printed.seed, printed.dataset.seed) == ("adam", 5, 5)
    assert printed.optimizer.lr == 0.003


def test_what_a_study_will_take_is_said_before_it_starts(study: Study) -> None:
    started = call("resume").stdout
    assert "Expected" not in started  # nothing is left to do
    again = ["run", "paper=toy", "scale=smoke", "arm=[sgd,adam]", "seed=0", "training.epochs=1"]
    assert re.search(r"Expected: [\d.]+ s of computing", call(*again, "n_jobs=1").stdout)


def test_points_of_a_grid_that_measured_the_same_are_named(toy: Path) -> None:
    typed = ["-m", "paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.epochs=1", "n_jobs=1"]
    shown = call("run", *typed, "training.clip_norm=1e8,1e9", "-q").stdout
    alike = "sgd training.clip_norm=100000000.0; sgd training.clip_norm=1000000000.0"
    assert f"identical numbers, to the last digit: {alike}" in " ".join(shown.split())


def test_quiet_prints_the_result_alone(toy: Path) -> None:
    typed = ["run", "paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.epochs=1"]
    loud, quiet = call(*typed), call(*typed, "-q")
    assert "[1/1] sgd/seed=0: finished" in loud.stdout
    assert "[1/1]" not in quiet.stdout
    assert "test/" in quiet.stdout


def test_a_terminal_sees_that_something_moves_before_anything_is_known(toy: Path) -> None:
    arguments = ("run", "toy", "scale=smoke", "--dry-run")
    shown = at_a_terminal(*arguments)
    assert 0 < shown.index("planning") < shown.index("every run")
    assert "planning" not in process(*arguments).stdout


def at_a_terminal(*arguments: str, **variables: str) -> str:
    """What a command writes to a terminal."""
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "TERM": "xterm", **variables}
    with subprocess.Popen([*REPRO, *arguments], env=environment, stdin=other_end, stdout=other_end):
        os.close(other_end)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while read := os.read(terminal, 65536):
                shown += read
    os.close(terminal)
    return shown.decode()


def test_show_begins_at_its_beginning(toy: Path) -> None:
    paged = at_a_terminal("show", "toy", PAGER="head -n 1")
    assert "A toy among papers" in paged
    assert len(paged.splitlines()) == 1
    assert len(process("show", "toy").stdout.splitlines()) > 20


def test_output_that_is_no_terminal_is_plain(study: Study) -> None:
    for arguments in (["list"], ["show", "toy"], ["status"], ["resume", "-q"]):
        assert "\x1b" not in call(*arguments).output, arguments


def test_unknown_commands_are_answered_with_a_guess() -> None:
    result = call("lst")
    assert result.exit_code == 2
    assert "Did you mean 'list'" in result.stderr
    assert call("frobnicate").exit_code == 2


def test_debug_shows_the_traceback_of_a_mistake(toy: Path) -> None:
    plain = process("run", "paper=tyo", cwd=toy)
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Did you mean 'toy'" in plain.stderr
    assert "Traceback" in process("--debug", "run", "paper=tyo", cwd=toy).stderr


def test_data_list_and_check(toy: Path) -> None:
    listed = json.loads(call("data", "list", "--json").stdout)
    assert {"digits", "mnist"} <= {each["name"] for each in listed}
    result = call("data", "check", "digits", "--json")
    assert json.loads(result.stdout) == {}  # it has no files of its own
    assert "no files" in call("data", "check", "digits").stdout
    result = call("data", "check", "digts")
    assert result.exit_code == 2
    assert "Did you mean 'digits'" in result.stderr


def test_doctor_reports_in_both_forms(toy: Path) -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = {finding["what"]: finding["state"] for finding in json.loads(result.stdout)}
    assert found["torch"] == found["outputs"] == found["papers"] == "ok"
    Path("outputs").rmdir()
    Path("outputs").touch()
    result = call("doctor")
    assert result.exit_code == 1
    assert "broken" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    assert "_REPRO_COMPLETE" in call("completion", shell).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("repro run paper=t", "paper=toy"),
        ("repro run paper=toy arm=tuned_", "arm=tuned_twice"),
        ("repro run paper=toy scale=sm", "scale=smoke"),
        ("repro run opt", "optimizer="),
        ("repro run paper=toy training.ep", "training.epochs="),
        ("repro run optimizer=adamw", "optimizer=adamw"),
        ("repro run method=skeleton/s", "method=skeleton/soft"),
        ("repro show to", "toy"),
        ("repro data check dig", "digits"),
    ],
)
def test_completion_knows_papers_arms_and_groups(
    toy: Path, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_REPRO_COMPLETE", "zsh_complete")
    result = CliRunner().invoke(cli, [], prog_name="repro", complete_var="_REPRO_COMPLETE")
    assert f"plain\n{expected}\n" in result.stdout


HEAVY = ("torch", "lightning", "hydra", "omegaconf", "scipy", "sklearn", "matplotlib", "datasets")


@pytest.mark.parametrize("arguments", ["--help", "list", "show toy", "status", "run --help"])
def test_looking_around_imports_nothing_heavy(toy: Path, arguments: str) -> None:
    code = (
        "import sys; from repro.cli.main import cli\n"
        f"try: cli({arguments.split()!r})\n"
        "except SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True
    )
    assert done.stderr.strip() == "[]"


def test_help_keeps_its_lines() -> None:
    """Examples stand below each other, as they are written."""
    for arguments in ("", "run", "sweep", "record"):
        shown = call(*arguments.split(), "--help").stdout
        assert "\\b" not in shown
        assert re.search(r"^ +repro [a-z]+ .*\n +repro [a-z]+ ", shown, re.M), shown


@pytest.mark.parametrize("verb", ["", *cli.commands, "data list", "data check", "data fetch"])
def test_help_fits_80_columns_and_cuts_no_sentence(verb: str) -> None:
    shown = CliRunner().invoke(cli, [*verb.split(), "--help"], terminal_width=80).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"\w\.\.\.$", shown, re.M)


def test_a_paper_is_named_without_saying_that_it_is_one(toy: Path) -> None:
    shown = call("run", "toy", "scale=smoke", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "Nothing was started." in shown.stdout
    assert "There is no paper 'tyo'. Did you mean 'toy'?" in call("run", "tyo").stderr


def test_brackets_are_text_and_no_markup(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "Bounds in [/l, u], errors in [low, high]"
    paper = replace(load_paper("toy"), title=title, question=title)
    monkeypatch.setattr("repro.records.papers.load_papers", lambda: [paper])
    monkeypatch.setattr("repro.records.papers.load_paper", lambda slug: paper)
    for shown in (call("list"), call("show", "toy")):
        assert shown.exit_code == 0, shown.output
        assert title in " ".join(shown.stdout.split())


def test_show_begins_with_what_was_measured() -> None:
    shown = call("show", "dgc").stdout
    assert 0 < shown.index("Recorded at scale=mini") < shown.index("\nClaims")
    recorded = json.loads(call("show", "dgc", "--json").stdout)["recorded"]["mini"]
    assert {"C1", "C3"} <= {claim["id"] for claim in recorded}


def test_a_reader_that_leaves_early_is_no_error(toy: Path) -> None:
    command = f"{sys.executable} -c 'from repro.cli.main import main; main()' list --json"
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_output_is_said_in_a_line(toy: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*REPRO, "list"],
            env={**os.environ, "PYTHONPATH": str(SUPPORT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
