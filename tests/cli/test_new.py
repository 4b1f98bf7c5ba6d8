"""`repro new`: what it writes runs at once, in a checkout and outside; bad names are refused."""

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
    assert "C1" in output
    code, output = run_repro(["show", "mypaper", "--config-dir", "conf"], folder)
    assert code == 0, output
    assert TITLE in output


def test_in_a_checkout_the_paper_and_its_test_join_the_others(folder: Path) -> None:
    checkout = folder / "checkout"
    for name in ("cli", "conf", "experiments", "src"):
        shutil.copytree(
            PROJECT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(PROJECT / "pyproject.toml", checkout)
    # Stands in for an editable install: the package `repro` out of four folders.
    package = folder / "lib" / "repro"
    package.mkdir(parents=True)
    for room in ("cli", "conf", "experiments"):
        (package / room).symlink_to(checkout / room)
    for part in (checkout / "src" / "repro").iterdir():
        (package / part.name).symlink_to(part)
    (checkout / "tests" / "experiments").mkdir(parents=True)

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(folder / "lib")}
        environment.pop("REPRO_CONFIG_DIR", None)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=checkout / "tests",  # anywhere in the checkout
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    made = python("-m", "repro.cli.main", "new", "mypaper")
    assert made.returncode == 0, made.stderr
    written = ["conf/paper/mypaper.yaml", "tests/experiments/test_mypaper.py"]
    written += [
        f"experiments/mypaper/{name}" for name in ("__init__.py", "claims.yaml", "README.md")
    ]
    assert all((checkout / path).is_file() for path in written)
    assert not (PROJECT / "experiments" / "mypaper").exists()
    style = python("-m", "ruff", "check", *(str(checkout / p) for p in written[1:3]))
    assert style.returncode == 0, style.stdout
    style = python("-m", "ruff", "format", "--check", *(str(checkout / p) for p in written[1:3]))
    assert style.returncode == 0, style.stdout
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "experiments/test_mypaper.py")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout


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
    place = scaffold.Place(Path("x"), "mypaper", in_checkout=True)
    templates = {path.name for path in (PROJECT / "cli" / "templates").iterdir()}
    assert set(place.templates.values()) == templates
