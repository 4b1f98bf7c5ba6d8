"""Papers and data sets of others: an installed distribution, and a settings file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from repro.cli import standing
from repro.cli.main import cli

from repro.data.base.files import cache_home
from repro.errors import UserError
from repro.records import papers
from repro.records.papers import CONFIG_DIR_VARIABLE, config_folders

SUPPORT = Path(__file__).parents[1] / "support"
CONF = SUPPORT / "toy_project" / "conf"


def repro(folder: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if key != CONFIG_DIR_VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "repro.cli.main", *typed],
        cwd=folder,
        env={**known, "XDG_CONFIG_HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """A folder in which a distribution lies as pip leaves it, with a paper and a data set."""
    library = tmp_path / "lib"
    shutil.copytree(CONF, library / "toy_papers" / "conf")
    (library / "toy_papers" / "__init__.py").touch()
    (library / "toy_papers" / "conf" / "dataset").mkdir()
    (library / "toy_papers" / "conf" / "dataset" / "sand.yaml").write_text(
        "# Grains of sand.\n_target_: toy_papers.sand\nname: sand\n"
    )
    shutil.copytree(SUPPORT / "toy_room", library / "toy_room")
    about = library / "toy_papers-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-papers\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[repro.papers]\ntoy = toy_papers.conf\n")
    return library


@pytest.mark.parametrize("verb", sorted(cli.commands.keys() - {"completion", "data", "new"}))
def test_every_verb_knows_papers_of_other_folders(verb: str) -> None:
    assert "--config-dir" in CliRunner().invoke(cli, [verb, "--help"]).output


def test_an_installed_distribution_adds_papers_and_data_sets(
    tmp_path: Path, distribution: Path
) -> None:
    where = {"PYTHONPATH": str(distribution)}
    listed = json.loads(repro(tmp_path, "list", "--json", **where).stdout)
    assert "toy" in {paper["slug"] for paper in listed}
    sets = json.loads(repro(tmp_path, "data", "list", "--json", **where).stdout)
    (sand,) = [each for each in sets if each["name"] == "sand"]
    assert (sand["description"], sand["problem"]) == ("Grains of sand.", None)
    assert "toy" not in repro(tmp_path, "list").stdout
    typed = ("run", "toy", "scale=smoke", "--dry-run", "--json")
    done = repro(tmp_path, *typed, **where)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 8
    done = repro(tmp_path, "doctor", "--json", **where)
    found = [(each["what"], each["detail"]) for each in json.loads(done.stdout)]
    assert ("configs", str(distribution / "toy_papers" / "conf")) in found
    assert ("papers", f"{len(listed)} with their claims") in found


def test_an_entry_point_that_leads_nowhere_is_said(tmp_path: Path, distribution: Path) -> None:
    points = distribution / "toy_papers-1.0.dist-info" / "entry_points.txt"
    points.write_text("[repro.papers]\ntoy = toy_papers.nothing\n")
    done = repro(tmp_path, "list", PYTHONPATH=str(distribution))
    assert done.returncode == 2
    assert "toy-papers names toy_papers.nothing as an entry point of repro.papers" in done.stderr


def test_a_settings_file_stands_for_typing_config_dir(tmp_path: Path) -> None:
    settings = tmp_path / "home" / "repro" / "settings.yaml"
    settings.parent.mkdir(parents=True)
    own = tmp_path / "own"
    shutil.copytree(CONF, own / "conf")
    shutil.copytree(SUPPORT / "toy_room", own / "toy_room")
    settings.write_text(f"config_dirs: [{own / 'conf'}]\n")
    assert "toy" in repro(tmp_path, "list").stdout
    # What the environment says goes first, even if that is nothing.
    assert "toy" not in repro(tmp_path, "list", **{CONFIG_DIR_VARIABLE: ""}).stdout
    done = repro(tmp_path, "doctor", "--json")
    assert str(settings) in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config_dirs: [nowhere]", "names a folder that is not there: nowhere"),
        ("config_dirs: [~no_such_user/x]", "names a folder that is not there: ~no_such_user/x"),
        ("config_dir: [x]", "has no setting 'config_dir'. Did you mean 'config_dirs'?"),
        ("- x", "takes settings such as config_dirs"),
        ("{", "not valid YAML"),
    ],
)
def test_mistakes_in_the_settings_file_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.delenv(CONFIG_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = standing.settings_file()
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        standing.use_settings()
    assert said in str(caught.value)


def test_without_a_home_folder_there_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_number: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CONFIG_HOME", "REPRO_CACHE", CONFIG_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    standing.use_settings()
    with pytest.raises(UserError, match="REPRO_CACHE=DIR"):
        cache_home()


def test_several_config_folders_are_searched_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, f"{first}{os.pathsep}{second}{os.pathsep}")
    monkeypatch.setattr(papers, "installed_folders", lambda: (tmp_path / "installed",))
    assert config_folders()[1:] == (tmp_path / "installed", first, second)


@pytest.mark.parametrize("verb", [["data", "list"], ["doctor"], ["compare", "a", "b"]])
def test_every_verb_takes_a_config_folder(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in (CONFIG_DIR_VARIABLE, "PYTHONPATH"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    result: Any = CliRunner().invoke(cli, [*verb, "--config-dir", str(CONF)])
    assert "No such option" not in result.output
    assert os.environ[CONFIG_DIR_VARIABLE] == str(CONF)
