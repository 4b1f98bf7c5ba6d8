"""A search over a real, small training: it goes on after a kill, prunes, and never sees tests."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from processes import repro
from torture import note, torture, tries

from repro.errors import ReproError, UserError
from repro.planning import extras
from repro.planning.compose import Layer
from repro.records.papers import load_paper
from repro.records.series import read_series
from repro.records.study import Study, find_studies
from repro.records.summary import Scored, best_first
from repro.search import database
from repro.search.loop import create, request_of, settled
from repro.search.request import Request, read_request
from repro.search.space import read_space

CONFIG = Path(__file__).parents[1] / "support/toy_project/conf"
BASE = ["paper=toy", "scale=smoke", "n_jobs=1"]
RATE = "optimizer.lr=tag(log, interval(1e-4,0.5))"
SMALL = [*BASE, "seed=0", "training.epochs=2", RATE]


def sweep(folder: Path, *overrides: str, code: int = 0, **environment: str) -> str:
    ended, output = repro(["sweep", *overrides], folder, environment)
    assert ended == code, output
    return output


def only_study(folder: Path) -> Study:
    (study,) = find_studies(folder / "outputs")
    return study


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((only_study(folder).folder / "search.json").read_text())
    return found


def trials(folder: Path) -> list[tuple[Any, ...]]:
    return [(r["point"], r["values"], r["state"]) for r in result(folder)["trials"]]


def epochs(study: Study, run: int) -> int:
    rows = read_series(study.runs[run].folder / "metrics.csv")
    return sum("val/accuracy" in row for row in rows)


def test_killed_search_goes_on_to_the_same_trials(toy: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    sweep(straight, *SMALL, "trials=4", "-q")
    sweep(killed, *SMALL, "trials=2", "-q")  # and then more of them, with the same command
    event = {"what": "SIGKILL", "at": "step 15", "once": str(killed / "it-happened")}
    sweep(killed, *SMALL, "trials=4", "-q", code=-9, TOY_EVENT=json.dumps(event))
    assert len(only_study(killed).runs) == 3
    assert only_study(killed).runs[2].status() == "interrupted"
    code, output = repro(["resume"], killed)
    assert code == 0, output
    assert trials(killed) == trials(straight)
    assert len({json.dumps(point) for point, *_ in trials(straight)}) == 4
    assert "repro run paper=toy scale=smoke" in output
    assert result(killed)["best"]["value"] == max(r["value"] for r in result(killed)["trials"])
    assert (only_study(killed).folder / "figures" / "search.png").stat().st_size > 1000
    assert (only_study(killed).folder / "figures" / "search.svg").is_file()


def test_hopeless_trials_are_pruned_and_spare_their_other_seeds(toy: Path) -> None:
    overrides = ["seeds=[5,6]", "optimizer.lr=choice(0.3,1e-06)", "sweep.pruner.n_startup_trials=1"]
    request, plan = read_request([*BASE, *overrides, "trials=3"])
    study = create(request, plan, toy / "outputs")
    with database.opened(study.folder, request) as known:
        for rate in ("0.3", "1e-06", "1e-06"):
            known.enqueue_trial({"optimizer.lr": rate})
    code, output = repro(["resume", "--json"], toy)
    assert code == 0, output
    found = json.loads(output[output.index("{") :])
    states = [(row["point"]["optimizer.lr"], row["state"]) for row in found["trials"]]
    assert states == [("0.3", "finished"), ("1e-06", "pruned"), ("1e-06", "pruned")]
    study = Study.open(study.folder)
    runs = {run.folder.relative_to(study.folder).as_posix(): run for run in study.runs}
    assert len(runs) == 4, "equal points share their runs"
    good = [runs[f"sgd/optimizer.lr=0.3/seed={seed}"] for seed in (5, 6)]
    bad, spared = (runs[f"sgd/optimizer.lr=1e-06/seed={seed}"] for seed in (5, 6))
    assert [run.status() for run in good] == ["finished", "finished"]
    assert (bad.status(), spared.status()) == ("pruned", "pruned")
    assert not spared.summary()
    assert epochs(study, study.runs.index(bad)) < 3 == epochs(study, study.runs.index(good[0]))
    mean = sum(run.summary()["val/accuracy"] for run in good) / 2
    assert found["best"]["value"] == pytest.approx(mean)
    assert "seeds=" not in found["command"], "other seeds judge than those that chose"
    assert "optimizer.lr=0.3" in found["command"]


def test_search_runs_are_never_tested(toy: Path) -> None:
    sweep(toy, *SMALL, "trials=1", "metric=val/loss", "-q")
    (run,) = only_study(toy).runs
    assert not any(name.startswith("test/") for name in run.summary())
    assert result(toy)["mode"] == "min"
    assert result(toy)["trials"][0]["values"] == [run.summary()["val/loss"]]
    assert "training.test_with" not in result(toy)["command"]


def test_trials_run_side_by_side(toy: Path) -> None:
    arguments = [text for text in SMALL if text != "n_jobs=1"]
    sweep(toy, *arguments, "n_jobs=2", "trials=2", "-q")
    assert [state for *_, state in trials(toy)] == ["finished", "finished"]
    workers = {run.record().pid for run in only_study(toy).runs}
    assert len(workers) == 2


def test_unknown_metric_is_found_in_the_first_epoch(toy: Path) -> None:
    output = sweep(toy, *SMALL, "metric=val/acuracy", "mode=max", code=2)
    assert "No run logs 'val/acuracy'. Did you mean 'val/accuracy'?" in output
    assert epochs(only_study(toy), 0) <= 1


def test_search_gives_up_when_every_trial_fails(toy: Path) -> None:
    event = json.dumps({"what": "error", "at": "step 1"})
    output = sweep(toy, *SMALL, "trials=9", "sweep.failures=2", code=1, TOY_EVENT=event)
    assert "The last 2 trials failed: ValueError: something broke" in output
    assert "log.txt" in output
    assert len(only_study(toy).runs) == 2


def test_locked_database_is_named(toy: Path) -> None:
    sweep(toy, *SMALL, "trials=1", "sweep.lock_seconds=0.1", "-q")
    study = only_study(toy)
    search = study.about.search
    assert search is not None
    study.update(search=search | {"trials": 2})
    with closing(sqlite3.connect(study.folder / "trials.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        code, output = repro(["resume"], toy)
    assert code == 2
    assert "trials.db is locked by another process" in output
    assert "Traceback" not in output
    assert "SELECT" not in output
    code, output = repro(["resume", "-q"], toy)
    assert code == 0, output


def test_damaged_database_is_named(toy: Path) -> None:
    sweep(toy, *SMALL, "trials=1", "-q")
    study = only_study(toy)
    whole = (study.folder / "trials.db").read_bytes()
    half = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    for content in (b"this is no database at all", half):
        (study.folder / "trials.db").write_bytes(content)
        code, output = repro(["resume"], toy)
        assert code == 2
        assert "damaged or not a database" in output
    (study.folder / "trials.db").unlink()
    started = study.runs[0].record().started
    code, output = repro(["resume", "-q"], toy)
    assert code == 0, output
    assert study.runs[0].record().started == started, "the run was not repeated"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Request]:
    """A search of which two trials came to their end, one was pruned and one failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CONFIG_DIR", str(CONFIG))
        request, plan = read_request([*SMALL, "trials=4"])
        study = create(request, plan, tmp_path_factory.mktemp("ended"))
    with database.opened(study.folder, request) as known:
        for state, values in [
            (TrialState.COMPLETE, [0.5, 0.25]),
            (TrialState.PRUNED, [0.125]),
            (TrialState.FAIL, []),
            (TrialState.COMPLETE, [0.75, 0.5]),
        ]:
            trial = known.ask({each.key: each.distribution for each in request.parameters})
            for epoch, value in enumerate(values):
                known.report(trial.number, epoch, value)
            objective = sum(values) / 2 if state is TrialState.COMPLETE else None
            known.finish(trial.number, state, objective, reason="as told", values=values)
    return study.folder, request


@pytest.fixture
def searched(ended: tuple[Path, Request], tmp_path: Path) -> tuple[Path, Request]:
    """The same, to be damaged."""
    folder, request = ended
    shutil.copy(folder / database.FILE, tmp_path)
    return tmp_path, request


def checked(folder: Path, request: Request) -> list[Any]:
    """What a search that goes on knows of its trials, times left out."""
    with database.opened(folder, request) as known:
        known.check()
        return [
            (each.number, each.state, each.values, each.params, each.user_attrs.get("values"))
            for each in settled(known)
        ]


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ("trial_params SET param_value = param_value * 1.0001 WHERE trial_id = 1", 0),
        ("trial_params SET distribution_json = replace(distribution_json, '0.5', '0.7')", 0),
        ("trial_values SET value = 0.374 WHERE trial_id = 1", 0),
        ("trial_values SET value = 0.126 WHERE trial_id = 2", 1),
        ("trial_intermediate_values SET intermediate_value = 0.9 WHERE trial_id = 2", 1),
        ("trial_user_attributes SET value_json = '[0.5, 0.35]' WHERE key = 'values'", 0),
        ("trials SET state = 'COMPLETE' WHERE state = 'FAIL'", 2),
        ("trial_user_attributes SET key = 'value' WHERE key = 'values' AND trial_id = 4", 3),
    ],
)
def test_a_damaged_trial_is_named(searched: tuple[Path, Request], change: str, number: int) -> None:
    folder, request = searched
    assert len(checked(folder, request)) == 4
    with closing(sqlite3.connect(folder / database.FILE)) as other, other:
        other.execute(f"UPDATE {change}")
    with pytest.raises(UserError, match=f"trials.db is damaged: trial {number} is not") as error:
        checked(folder, request)
    assert len(str(error.value).splitlines()) == 1


def test_a_search_that_lost_its_name_is_not_begun_anew(searched: tuple[Path, Request]) -> None:
    folder, request = searched
    with closing(sqlite3.connect(folder / database.FILE)) as other, other:
        other.execute("UPDATE studies SET study_name = 'searbh'")
    with pytest.raises(UserError, match="damaged or not a database"):
        checked(folder, request)


def test_trials_of_earlier_versions_are_believed(searched: tuple[Path, Request]) -> None:
    folder, request = searched
    before = checked(folder, request)
    with closing(sqlite3.connect(folder / database.FILE)) as other, other:
        other.execute("DELETE FROM trial_user_attributes WHERE key = 'checksum'")
    assert checked(folder, request) == before


@torture
def test_a_flipped_bit_in_a_search_is_noticed_or_does_no_harm(
    searched: tuple[Path, Request],
) -> None:
    folder, request = searched
    before = checked(folder, request)
    file = folder / database.FILE
    whole = file.read_bytes()
    noise = random.Random(0)
    used = [place for place, byte in enumerate(whole) if byte]
    tried = tries(30, 300)
    for _ in range(tried):
        place, bit = noise.choice(used), noise.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with suppress(ReproError):
            assert checked(folder, request) == before, (place, bit)
        for left in folder.glob(f"{database.FILE}-*"):
            left.unlink()
    note("bit flips refused or harmless", tried, tried)


def test_a_search_is_not_run_twice_at_a_time(toy: Path) -> None:
    request, plan = read_request([*SMALL, "trials=1"])
    study = create(request, plan, toy / "outputs")
    with study.held():
        code, output = repro(["resume"], toy)
    assert code == 2
    assert "is being executed by" in output
    assert request_of(Study.open(study.folder)) == request


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trials=0"], "trials takes a whole number from 1 on, not 0"),
        (["trials=many"], "trials takes a whole number"),
        (["trials=1,2"], "trials takes one value"),
        (["metric=test/accuracy"], "must not see test metrics.*such as val/accuracy"),
        (["metric=train/loss"], "choose a validation metric"),
        (["metric=val/strangeness"], "mode=max or mode=min"),
        (["mode=maxi"], "mode is min or max.*Did you mean 'max'"),
        (["model.dropout=interval(0.5,0.1)"], "lower end 0.5 must lie below 0.1"),
        (["model.dropout=interval(0.5,0.5)"], "is empty"),
        (["model.dropout=tag(log, interval(0,1))"], "starts above 0, not at 0"),
        (["model.dropout=tag(lg, interval(0,1))"], "the only tag is log"),
        (["model.dropout=glob(*)"], "list the values"),
        (["model.droput=interval(0,1)"], "no setting 'model.droput'. Did you mean"),
        (["model.hidden=choice([8],many)"], "model.hidden takes a list"),
        (["training.log_every=interval(1,9)"], "training.log_every takes a whole number"),
        (["optimizer=choice(sgd,adamm)"], "Did you mean 'adam'"),
        (["seed=1", "seeds=choice(1,2)"], "seeds is not searched"),
        (["arm=[sgd,adam]"], "A search is about one arm"),
        (["arm=sgdd"], "no arm 'sgdd'. Did you mean 'sgd'"),
        (["sweep=medain"], "Did you mean 'median'"),
        (["sweep.parallel=0"], "sweep.parallel takes a whole number"),
        (["training.monitor=test/loss"], "never a test metric"),
    ],
)
def test_bad_requests_are_explained_before_anything_is_written(
    toy: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_request(["paper=toy", "scale=smoke", RATE, *overrides])
    assert not (toy / "outputs").exists()


def test_nothing_to_search(toy: Path) -> None:
    with pytest.raises(UserError, match="Nothing to search"):
        read_request(["paper=toy"])
    with pytest.raises(UserError, match="Which paper"):
        read_request([RATE])


def test_ambiguous_arm_is_asked_for(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_paper = load_paper("toy")
    two_plain = replace(toy_paper, arms={**toy_paper.arms, "plain_too": []})
    monkeypatch.setattr("repro.search.request.load_paper", lambda _: two_plain)
    with pytest.raises(UserError, match="Which arm is searched"):
        read_request(["paper=toy", RATE])


def test_missing_extra_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'gradient-repro\[sweep\]'"):
        read_request(["paper=toy", RATE])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1,5)", FloatDistribution(1, 5)),
        ("tag(log, interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("int(tag(log, interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,9)", IntDistribution(1, 8)),
        ("range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("shuffle(range(1,9,3))", IntDistribution(1, 7, step=3)),
        ("range(0.1,0.35,0.1)", CategoricalDistribution(["0.1", "0.2", "0.3"])),
        ("choice(0.8,0.9)", CategoricalDistribution(["0.8", "0.9"])),
        ("choice([8],[16,8])", CategoricalDistribution(["[8]", "[16,8]"])),
        ("0.1,0.2", CategoricalDistribution(["0.1", "0.2"])),
    ],
)
def test_hydra_sweeps_become_distributions(text: str, expected: Any) -> None:
    (parameter,) = read_space(Layer.parse([f"a.b={text}"], "test").overrides)
    assert parameter.key == "a.b"
    assert parameter.distribution == expected


def test_each_trial_has_a_seed_of_its_own(toy: Path) -> None:
    request, _ = read_request(["paper=toy", "scale=smoke", RATE])
    draws = []
    for number in (0, 1, 0):
        with database.opened(toy, request) as known:
            known.sampler = database.sampler(request, number)
            draws.append(known.ask({"x": FloatDistribution(0, 1)}).params["x"])
        (toy / database.FILE).unlink()
    assert draws[0] == draws[2] != draws[1]


def test_other_seeds_than_those_reported_are_the_default(toy: Path) -> None:
    request, plan = read_request(["paper=toy", "scale=smoke", RATE])
    assert {run.seed for run in plan.runs} == {100, 101}
    assert request.arm == "sgd"
    _, plan = read_request(["paper=toy", "scale=smoke", RATE, "arm=tuned", "seed=7"])
    assert {(run.arm, run.seed) for run in plan.runs} == {("sgd", 7), ("tuned", 7)}


def test_best_first() -> None:
    def row(name: str, values: list[float], state: str = "2 finished") -> Scored:
        return Scored((name,), {}, values, state)

    rows = [row("a", [1.0, 3.0]), row("p", [9.0], "pruned"), row("b", [3.0, 3.0]), row("f", [])]
    assert [r.names[0] for r in best_first(rows, "max")] == ["b", "a", "p", "f"]
    assert [r.names[0] for r in best_first(rows, "min")] == ["a", "b", "p", "f"]


def test_grid_shows_its_best_point_first(toy: Path) -> None:
    grid = ["-m", *BASE, "arm=sgd", "seed=0", "training.epochs=1", "optimizer.lr=1e-6,0.3"]
    code, output = repro(["run", *grid, "-q"], toy)
    assert code == 0, output
    table = output[output.index("Best first, by val/accuracy") :]
    assert table.index("0.3") < table.index("1e-06")
    code, output = repro(["resume", "--json"], toy)
    points = json.loads(output[output.index("{") :])["points"]
    assert [point["point"]["optimizer.lr"] for point in points] == [0.3, 1e-6]
    assert points[0]["metric"] == "val/accuracy"
