"""seeds=auto: a study gets more seeds for the arms of claims that are open, and then ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from repro.cli.main import cli

from repro.claims.studies import verdicts_of
from repro.launching.growing import Look, extend, next_look
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import Paper
from repro.records.run import Run
from repro.records.study import Study, find_studies
from repro.report import record as recording

AUTO = ["seeds=auto", "looks.first=2", "max_seeds=5"]
TYPED = ["paper=toy", "scale=smoke", "training.epochs=1", "n_jobs=1", *AUTO]


def claims(toy: Path, monkeypatch: pytest.MonkeyPatch, *checks: str) -> None:
    """Replaces the toy's claims by one for each of these checks."""
    paper = "where: nowhere, paper: {value: x, source: read}"
    head = f"statement: It works., {paper}, scales: [smoke, mini]"
    lines = [f"  - {{id: T{n}, {head}, checks: [{{{c}}}]}}" for n, c in enumerate(checks, 1)]
    (toy / "claims.yaml").write_text("\n".join(["claims:", *lines]))
    monkeypatch.setattr(Paper, "claims_file", toy / "claims.yaml")


def better(arm: str, versus: str = "sgd") -> str:
    return f"relation: greater, metric: test/accuracy, arm: {arm}, versus: {versus}"


def finish(run: Run, accuracy: float) -> None:
    """Ends a run without training."""
    run.update(status="finished", seconds=6.0)
    run.summary_file.write_text(json.dumps({"test/accuracy": accuracy}))


def finish_all(study: Study, **accuracies: tuple[float, ...]) -> None:
    for run in study.runs:
        record = run.record()
        finish(run, accuracies.get(record.arm, (0.5,) * 9)[record.seed])


def made(study: Study) -> dict[str, list[int]]:
    """The seeds of each arm."""
    seeds: dict[str, list[int]] = {}
    for record in (run.record() for run in study.runs):
        seeds.setdefault(record.arm, []).append(record.seed)
    return seeds


@pytest.fixture
def study(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The first look of a study with two claims; nothing has run."""
    claims(toy, monkeypatch, better("adam"), better("tuned"))
    return create_study(plan_study(TYPED), toy / "outputs")


def test_a_study_begins_with_the_seeds_of_the_first_look(study: Study) -> None:
    arms = ("sgd", "adam", "tuned", "tuned_twice")
    assert made(study) == {arm: [0, 1] for arm in arms}
    assert study.about.looks is not None
    assert study.about.looks.after == [2, 3, 4, 5]
    assert "claims are judged after 2, 3, 4, 5 seeds" in study.about.notes[0]


@pytest.mark.parametrize(
    ("first", "growth", "most", "after"),
    [(4, 1.5, 20, [4, 6, 9, 14, 20]), (2, 1.1, 4, [2, 3, 4]), (3, 2, 3, [3])],
)
def test_looks_grow_up_to_the_most_seeds(
    toy: Path, first: int, growth: float, most: int, after: list[int]
) -> None:
    keys = [f"looks.first={first}", f"looks.growth={growth}", f"max_seeds={most}"]
    looks = plan_study(["paper=toy", "seeds=auto", *keys, "max_minutes=1.5"]).looks
    assert looks is not None
    assert (looks.after, looks.max_minutes) == (after, 1.5)


def test_only_arms_of_open_claims_get_more_seeds(study: Study) -> None:
    """A twin of noise about nothing is open; what differs by forty deviations is decided."""
    finish_all(study, sgd=(0.50, 0.51), adam=(0.52, 0.49), tuned=(0.100, 0.1099))
    assert next_look(study) == Look(["T1"], ["adam", "sgd"], [2])
    before = {run.folder: run.record().created for run in study.runs}
    extend(study)
    assert made(study) == {
        "sgd": [0, 1, 2],
        "adam": [0, 1, 2],
        "tuned": [0, 1],
        "tuned_twice": [0, 1],
    }
    assert all(Run(folder).record().created == then for folder, then in before.items())
    added = [run for run in study.runs if run.folder not in before]
    assert [str(run.status()) for run in added] == ["waiting", "waiting"]
    assert added[0].config().training.epochs == 1  # what was typed holds for them, too


def test_parents_come_with_their_children(study: Study) -> None:
    finish_all(study, sgd=(0.5, 0.5), adam=(0.900, 0.901), tuned=(0.3, 0.8))
    assert next_look(study) == Look(["T2"], ["tuned", "sgd"], [2])
    extend(study)
    child = next(r for r in study.layers[1] if r.record().seed == 2)
    parent = child.parent()
    assert parent is not None
    assert (parent.record().arm, parent.record().seed) == ("sgd", 2)


def test_it_ends_once_all_is_decided(study: Study) -> None:
    finish_all(study, sgd=(0.5, 0.5), adam=(0.900, 0.901), tuned=(0.900, 0.901))
    assert [claim.verdict for claim in verdicts_of(study)] == ["supported", "supported"]
    assert extend(study) is None


def test_it_ends_once_there_are_as_many_seeds_as_allowed(study: Study) -> None:
    open_ended = (0.3, 0.8, 0.4, 0.7, 0.5)
    seen = []
    for _ in range(9):
        finish_all(study, adam=open_ended, tuned=open_ended)
        look = extend(study)
        if look is None:
            break
        seen.append(look.seeds)
    assert seen == [[2], [3], [4]]
    assert made(study)["adam"] == [0, 1, 2, 3, 4]
    assert [claim.verdict for claim in verdicts_of(study)] == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize(("minutes", "is_enough"), [(1.0, False), (1.2, True)])
def test_it_begins_no_look_that_would_take_too_long(
    study: Study, minutes: float, is_enough: bool
) -> None:
    """Eight runs took 6 seconds each; the three of the next look would make 1.1 minutes."""
    assert study.about.looks is not None
    study.update(looks=study.about.looks.model_copy(update={"max_minutes": minutes}))
    finish_all(study, adam=(0.3, 0.8), tuned=(0.3, 0.8))
    assert (next_look(study) is not None) == is_enough


def test_a_study_with_given_seeds_does_not_grow(toy: Path) -> None:
    study = create_study(plan_study(["paper=toy", "scale=smoke"]), toy / "outputs")
    assert study.about.looks is None
    assert next_look(study) is None


def run(*typed: str) -> Result:
    return CliRunner().invoke(cli, ["run", *TYPED, *typed])


def test_the_command_runs_look_after_look(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims(toy, monkeypatch, better("adam") + ", min_seeds: 3")
    result = run()
    assert result.exit_code == 0, result.output
    assert "T1 not decided yet: seed 2 of adam, sgd" in result.stdout
    (study,) = find_studies(Path("outputs"))
    seeds = made(study)
    assert seeds["adam"][:3] == seeds["sgd"][:3] == [0, 1, 2]
    assert seeds["tuned"] == [0, 1]
    assert {str(each.status()) for each in study.runs} == {"finished"}


def test_a_killed_study_goes_on_where_it_was(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims(toy, monkeypatch, better("adam") + ", min_seeds: 3")
    study = create_study(plan_study([*TYPED, "arm=[sgd,adam]", "looks.growth=9"]), toy / "outputs")
    finish_all(study)
    result = CliRunner().invoke(cli, ["resume", str(study.folder), "-q"])
    assert result.exit_code == 0, result.output
    assert made(Study.open(study.folder)) == {arm: [0, 1, 2, 3, 4] for arm in ("sgd", "adam")}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["-m", "optimizer.lr=0.1,0.2"], "a grid or a single arm decides none"),
        (["arm=adam"], "a grid or a single arm decides none"),
        (["looks.first=1"], "looks.first lies between 2 and max_seeds=5, not at 1."),
        (["looks.first=6"], "looks.first lies between 2 and max_seeds=5, not at 6."),
        (["looks.growth=1"], "looks.growth is a number above 1, not 1."),
        (["max_minutes=-3"], "max_minutes is a number above 0, or null, not -3."),
        (["seeds=[0,1]"], "max_seeds is about seeds=auto, which is missing."),
        (["looks={first:2}"], "looks takes its settings one by one"),
    ],
)
def test_mistakes_are_said_in_a_line(toy: Path, typed: list[str], message: str) -> None:
    keys = {text.partition("=")[0] for text in typed}
    kept = [text for text in TYPED if text.partition("=")[0] not in keys]
    result = CliRunner().invoke(cli, ["run", *kept, *typed])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert find_studies(Path("outputs")) == []


def test_a_search_takes_a_list(toy: Path) -> None:
    typed = ["paper=toy", "arm=sgd", "seeds=auto", "optimizer.lr=interval(0.01,0.1)"]
    result = CliRunner().invoke(cli, ["sweep", *typed])
    assert result.exit_code == 2
    assert "Give a list instead: seeds=[0,1,2]." in result.stderr


def test_a_grown_study_is_the_papers_own_and_its_looks_are_recorded(
    study: Study, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Paper, "results_file", lambda _, scale: toy / f"{scale}.json")
    monkeypatch.setattr(recording, "project_readme", lambda: toy / "README.md")
    monkeypatch.setattr(recording, "draw_study", lambda _: [])
    plain: Any = [text for text in study.about.typed if not text.startswith("training.")]
    study.update(typed=plain)
    finish_all(study, adam=(0.900, 0.901), tuned=(0.900, 0.901))
    file = recording.record({"paper": "toy", "scale": "smoke"}, toy / "outputs")
    content = json.loads(file.read_text())
    assert content["looks"] == [2, 3, 4, 5]
    shown = CliRunner().invoke(cli, ["show", "toy", "--power", "--json"])
    (first, _) = json.loads(shown.stdout)["smoke"]
    assert (first["verdict"], first["seeds"]) == ("supported", 2)
