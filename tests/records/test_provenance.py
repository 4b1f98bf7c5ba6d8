"""Which code produced a record, and whether it is still that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from repro.cli.main import cli

from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records import provenance, recorded
from repro.records.papers import Paper, load_paper
from repro.records.provenance import paper_fingerprint

Write = Callable[[str], None]


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paper:
    """A paper whose sources may be changed: the toy in a folder of its own."""
    support = Path(__file__).parents[1] / "support"
    shutil.copytree(support / "toy_project" / "conf", tmp_path / "conf")
    shutil.copytree(support / "toy_room", tmp_path / "toy_room")
    monkeypatch.setenv("REPRO_CONFIG_DIR", str(tmp_path / "conf"))
    monkeypatch.setattr(Paper, "room_folder", tmp_path / "toy_room")
    return load_paper("toy")


def fingerprint(paper: Paper) -> str:
    provenance._configs.cache_clear()  # files do not change while the command runs
    return paper_fingerprint(paper)


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("toy_room/module.py", True),
        ("toy_room/claims.yaml", False),  # runs are judged again
        ("conf/paper/toy.yaml", True),
        ("conf/model/noisy.yaml", True),  # it names the room
        ("toy_room/README.md", False),
        ("conf/paper/other.yaml", False),
        ("conf/model/other.yaml", False),
    ],
)
def test_what_is_the_papers_own_is_in_its_fingerprint(
    paper: Paper, tmp_path: Path, file: str, matters: bool
) -> None:
    before = fingerprint(paper)
    assert fingerprint(paper) == before
    with (tmp_path / file).open("a") as handle:
        handle.write("\nchanged: true  # comment\n")
    assert (fingerprint(paper) != before) == matters


@pytest.mark.parametrize(
    ("old", "new", "matters"),
    [
        ("seeds: [0, 1, 2]", "seeds: [0, 1]", False),  # a record has its own
        ("    - seeds=[3]\n", "", False),
        ("    - training.epochs=1  # short\n", "    - training.epochs=1\n", False),
        ("figures:\n  loss: {kind: curves}\n", "figures:\n  loss: {kind: points}\n", False),
        ("report: [test/loss]", "report: [test/accuracy]", False),
        ("    - training.epochs=1 ", "    - training.epochs=2 ", True),
        ("  sgd: [optimizer.lr=0.1]", "  sgd: [optimizer.lr=0.2]", True),
        ("training:\n", "schedule:\n", True),  # below what does not matter
    ],
)
def test_what_no_run_reads_is_left_out(
    paper: Paper, tmp_path: Path, old: str, new: str, matters: bool
) -> None:
    content = """
arms:
  sgd: [optimizer.lr=0.1]
scales:
  mini:
    - seeds=[3]
    - training.epochs=1  # short
seeds: [0, 1, 2]
report: [test/loss]
figures:
  loss: {kind: curves}
training:
  epochs: 3
"""
    assert content.count(old) == 1
    file = tmp_path / "conf/paper/toy.yaml"
    file.write_text(content)
    before = fingerprint(paper)
    file.write_text(content.replace(old, new))
    assert (fingerprint(paper) != before) == matters


def test_every_paper_has_its_own_fingerprint() -> None:
    papers = [load_paper(slug) for slug in ("dgc", "gblm", "man")]
    assert len({paper_fingerprint(paper) for paper in papers}) == 3


@pytest.fixture
def record(paper: Paper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes what is recorded of the toy's code."""
    monkeypatch.setattr(Paper, "results_file", lambda _, scale: tmp_path / f"{scale}.json")

    def write(code: str) -> None:
        content = {"code": json.loads(code), "claims": [], "runs": []}
        (tmp_path / "mini.json").write_text(json.dumps(content))

    return write


def test_a_study_knows_the_paper_that_it_ran(paper: Paper, tmp_path: Path) -> None:
    study = create_study(plan_study(["paper=toy", "arm=sgd", "seed=0"]), tmp_path / "outputs")
    assert study.about.code.paper_sha256 == paper_fingerprint(paper)
    assert len(study.about.code.sha256) == 16


def test_a_record_is_outdated_once_its_papers_code_changes(paper: Paper, record: Write) -> None:
    record(json.dumps({"sha256": "0", "commit": "abc", "paper_sha256": fingerprint(paper)}))
    assert recorded.recorded_commit(paper, "mini") == "abc"
    assert not recorded.is_outdated(paper, "mini")
    record(json.dumps({"sha256": "0", "commit": "abc+changes", "paper_sha256": "other"}))
    assert recorded.is_outdated(paper, "mini")


def test_a_record_that_does_not_say_what_ran_may_be_outdated(paper: Paper, record: Write) -> None:
    record('{"sha256": "0123456789abcdef"}')
    assert recorded.recorded_commit(paper, "mini") == "unknown"
    assert recorded.is_outdated(paper, "mini")


def test_list_and_show_mark_what_is_outdated(paper: Paper, record: Write) -> None:
    record('{"sha256": "0", "commit": "abc", "paper_sha256": "other"}')
    shown = CliRunner().invoke(cli, ["show", "toy"])
    said = " ".join(shown.stdout.split())
    assert f"by the code of commit abc; {recorded.OLD_MEANS}" in said, shown.output
    found = json.loads(CliRunner().invoke(cli, ["show", "toy", "--json"]).stdout)
    assert found["code"] == {"mini": {"commit": "abc", "outdated": True}}
    lines = [line.strip() for line in CliRunner().invoke(cli, ["list"]).stdout.splitlines()]
    titles = [number for number, line in enumerate(lines) if line.startswith("toy ")]
    assert [lines[number + 1].split()[:2] for number in titles] == [["mini", "†"]]
