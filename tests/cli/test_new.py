"""`repro new`: what it writes runs and passes the tests at once; bad names are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from processes import repro as run_repro
from repro.cli import scaffold
from repro.cli.main import cli

PROJECT = Path(__file__).parents[2]
TITLE = 'Its "title": a {{ brace }} #1'


def new(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["new", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_outside_a_checkout_the_paper_runs_with_its_config_folder(folder: Path) -> None:
    result = new("mypaper", "--title", TITLE, "--link", "arXiv 1712.01887")
    assert result.exit_code == 0, result.output
    assert "repro run paper=mypaper scale=smoke --config-dir conf" in result.stdout
    command = ["run", "paper=mypaper", "scale=smoke", "n_jobs=1", "--config-dir", "conf", "-q"]
    code, output = run_repro(command, folder)
    assert code == 0, output
    assert "smoke only shows that things run" in output
    code, output = run_repro(["show", "mypaper", "--config-dir", "conf"], folder)
    assert code == 0, output
    assert TITLE in output
    assert "So does its test: pytest tests/test_mypaper.py" in result.stdout
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(tests, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    (examples,) = (line for line in result.stdout.splitlines() if "examples: " in line)
    assert (Path(examples.split("examples: ")[1][:-1]) / "dgc.yaml").is_file()


def test_in_a_checkout_the_tests_of_all_papers_hold_for_the_new_one(folder: Path) -> None:
    checkout = folder / "checkout"
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "outputs", "build", "*.egg-info")
    shutil.copytree(PROJECT, checkout, ignore=leave_out)
    # Stands in for an editable install: the package `repro` out of four folders.
    package = folder / "lib" / "repro"
    package.mkdir(parents=True)
    for room in ("cli", "conf", "experiments"):
        (package / room).symlink_to(checkout / room)
    for part in (checkout / "src" / "repro").iterdir():
        (package / part.name).symlink_to(part)

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(folder / "lib")}
        environment.pop("REPRO_CONFIG_DIR", None)
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=checkout / "tests",  # anywhere in the checkout
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "repro.cli.main", "new", "mypaper")
    written = ["conf/paper/mypaper.yaml"]
    written += [
        f"experiments/mypaper/{name}" for name in ("__init__.py", "claims.yaml", "README.md")
    ]
    assert all((checkout / path).is_file() for path in written)
    assert not (PROJECT / "experiments" / "mypaper").exists()
    python("-m", "ruff", "check", str(checkout / "experiments" / "mypaper"))
    python("-m", "ruff", "format", "--check", str(checkout / "experiments" / "mypaper"))
    # Whatever looks at every paper looks at this one, and at the pages that list papers.
    looking = ["experiments/test_rooms.py", "report/test_record.py", "report/test_combinations.py"]
    tests = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", *looking,
        "-k", "mypaper or overview or written_by_the_command",
    )  # fmt: skip
    assert "test_rooms" not in tests, tests  # nothing failed, and nothing was left out
    assert int(tests.split(" passed")[0].split()[-1]) > 15


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("My-Paper", "Perhaps 'my_paper'?"),
        ("1st", "a letter first"),
        ("../evil", "Perhaps 'evil'?"),
        ("class", "cannot name a paper"),
        ("", "cannot name a paper"),
        ("dgc", "already a paper 'dgc'"),
        ("json", "name of an installed Python module"),
        ("numpy", "name of an installed Python module"),
    ],
)
def test_bad_and_taken_names_are_refused(folder: Path, slug: str, message: str) -> None:
    result = new("--", slug)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(folder.iterdir()), "nothing was written"


def test_no_file_is_overwritten(folder: Path) -> None:
    (folder / "mypaper").mkdir()
    (folder / "mypaper" / "claims.yaml").write_text("mine")
    result = new("mypaper")
    assert result.exit_code == 2
    assert "claims.yaml exists already" in result.stderr
    assert not (folder / "conf").exists()


def test_a_module_in_the_current_folder_counts_as_taken_only_if_files_are(folder: Path) -> None:
    (folder / "mypaper").mkdir()
    assert new("mypaper").exit_code == 0


def test_every_template_is_used() -> None:
    places = (scaffold.Place(Path("x"), "mypaper", in_checkout) for in_checkout in (True, False))
    templates = {path.name for path in (PROJECT / "cli" / "templates").iterdir()}
    assert {name for place in places for name in place.templates.values()} == templates
