"""The wheel is complete: installed elsewhere, it does in an empty folder what a checkout does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"cli": "repro/cli", "conf": "repro/conf", "experiments": "repro/experiments"}


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "REPRO"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the files that git tracks, so that no local litter helps it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    for name in listed.splitlines():
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", target, cwd=source)
    (built,) = target.glob("*.whl")
    return built


def needed() -> set[str]:
    """Every module, config, claim and record of the checkout, by its place in the wheel."""
    places = set()
    for folder, inside in {"src/repro": "repro", **ROOMS}.items():
        root = REPOSITORY / folder
        for pattern in ("*.py", "*.yaml", "README.md", "results/*.json", "py.typed"):
            places |= {f"{inside}/{p.relative_to(root).as_posix()}" for p in root.rglob(pattern)}
    return places


@pytest.mark.slow
def test_no_command_installs_somebody_elses_package() -> None:
    """The index has another `repro`: extras are those of this distribution, by its own name."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    texts = [REPOSITORY / name for name in listed.splitlines() if not name.startswith("tests/")]
    foreign = re.compile(r"""(pip|uv|pipx) [a-z ]*install [^`\n]*(?<![-\w/.])repro\b|['"]repro\[""")
    for file in texts:
        if file.suffix in (".py", ".md", ".yaml", ".toml", ".j2", "") and file.is_file():
            assert not foreign.search(file.read_text()), file


def test_the_wheel_holds_modules_configs_claims_and_records(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert needed() <= held, sorted(needed() - held)
    assert not [name for name in held if "/tests/" in name or "outputs" in name]


@pytest.mark.slow
def test_the_installed_wheel_runs_a_paper_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    (site,) = environment.glob("lib/python*/site-packages")
    python = environment / "bin" / "python"
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
    ]
    run(*pip, "--quiet", wheel, cwd=tmp_path)
    # Everything else comes from this environment; entries of a .pth follow the site's own.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(python, "-c", "import repro.cli; print(repro.cli.__file__)", cwd=empty)
    assert where.startswith(str(environment))
    repro = environment / "bin" / "repro"
    assert "dgc" in run(repro, "list", cwd=empty)
    printed = run(
        repro, "run", "paper=dgc", "scale=smoke", "arm=[dense,dgc]", "n_jobs=1", cwd=empty
    )
    assert "finished" in printed
    assert list(empty.glob("outputs/dgc/smoke/*/verdicts.json"))
