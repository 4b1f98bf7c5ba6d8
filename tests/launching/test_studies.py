"""Studies: layers, failures that stop nothing, diverged runs, and the same numbers in parallel."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hydra.core.global_hydra import GlobalHydra
from processes import repro
from repro.cli.main import cli

from repro.claims.studies import judge_study, read_verdicts, results
from repro.errors import UserError
from repro.launching import local
from repro.launching.local import launcher_overrides
from repro.planning import prepare
from repro.planning.compose import hydra_ready, quoted
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.run import Run
from repro.records.study import Study, find_studies

SMOKE = ["run", "paper=toy", "scale=smoke"]
SHORT = [*SMOKE, "training.epochs=1"]


def run(*typed: str) -> Result:
    return CliRunner().invoke(cli, [*SMOKE, "n_jobs=1", *typed])


def only_study() -> Study:
    (study,) = find_studies(Path("outputs"))
    return study


def summaries(study: Study) -> dict[str, dict[str, Any]]:
    return {
        str(run.folder.relative_to(study.folder)): {
            name: value for name, value in run.summary().items() if not name.startswith("time/")
        }
        for run in study.runs
    }


def cause(monkeypatch: pytest.MonkeyPatch, what: str, at: str, arm: str) -> None:
    monkeypatch.setenv("TOY_EVENT", json.dumps({"what": what, "at": at, "arm": arm}))


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A whole study, run in one process."""
    folder = tmp_path_factory.mktemp("serial")
    config = str(Path(__file__).parents[1] / "support/toy_project/conf")
    code, output = repro([*SHORT, "n_jobs=1"], folder, {"REPRO_CONFIG_DIR": config})
    assert code == 0, output
    (study,) = find_studies(folder / "outputs")
    return study


def test_children_start_from_their_parents_weights(toy: Path) -> None:
    assert run("arm=tuned", "seed=1", "optimizer.lr=1e-30", "training.epochs=1").exit_code == 0
    parent, child = only_study().runs
    first, second = (torch.load(r.last_checkpoint, weights_only=True) for r in (parent, child))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name
    assert child.parent() is not None
    assert child.parent().folder == parent.folder.resolve()  # type: ignore[union-attr]


@pytest.mark.slow
def test_parallel_studies_give_the_same_numbers(toy: Path, serial: Study) -> None:
    code, output = repro([*SHORT, "n_jobs=2"], toy)
    assert code == 0, output
    study = only_study()
    assert len({run.record().pid for run in study.runs}) == 2
    assert summaries(study) == summaries(serial)


def test_exclusive_runs_come_last_and_one_at_a_time(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[list[str]] = []

    def note(_launcher: Any, runs: list[Run], _study: Study, first: int) -> None:
        assert first == sum(map(len, together))
        together.append([f"{run.folder.parent.name} {run.folder.name}" for run in runs])

    monkeypatch.setattr(local, "_launch_together", note)
    alone = "arms.adam=['optimizer=adam','exclusive=true']"
    plan = plan_study(["paper=toy", "scale=smoke", "n_jobs=2", alone, "arm=[adam,tuned]"])
    study = create_study(plan, toy / "outputs")
    local.run_study(study)
    shared = [[f"{arm} seed={seed}" for seed in (0, 1)] for arm in ("sgd", "tuned")]
    assert together == [*shared, ["adam seed=0"], ["adam seed=1"]]


def test_jobs_get_the_config_that_hydra_would_compose(toy: Path) -> None:
    typed = [f"run={quoted(str(toy / 'its $ {own}'))}", f"study={quoted(str(toy))}"]
    with hydra_ready():
        launchers = local._launcher_config(("hydra/launcher=basic",), toy)
        copied = local._JobConfigs().load_sweep_config(launchers, typed)
        composed = GlobalHydra.instance().config_loader().load_sweep_config(launchers, typed)
    # A name for folders, which studies give their own.
    composed.hydra.job.override_dirname = copied.hydra.job.override_dirname
    assert copied == composed
    assert copied.run == str(toy / "its $ {own}")
    assert launchers.run == "none"


def test_a_study_can_be_moved_and_resumed_elsewhere(toy: Path, serial: Study) -> None:
    import shutil

    moved = toy / "outputs" / "toy" / "smoke" / "moved"
    shutil.copytree(serial.folder, moved)
    victim = Study.open(moved.absolute()).layers[1][0]
    victim.update(status="interrupted")
    victim.last_checkpoint.unlink()
    result = CliRunner().invoke(cli, ["resume", str(moved), "-q"])
    assert result.exit_code == 0, result.output
    assert summaries(Study.open(moved.absolute())) == summaries(serial)


def test_studies_of_the_same_second_get_folders_of_their_own(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(prepare.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(prepare, "datetime", Stopped)
    plan = plan_study(["paper=toy", "arm=sgd", "seed=0"])
    names = [create_study(plan, toy / "outputs").folder.name for _ in range(3)]
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]


def test_a_failing_run_stops_neither_the_study_nor_its_record(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause(monkeypatch, "error", "step 5", "sgd")
    result = run("arm=[sgd,adam,tuned]", "seed=0")
    assert result.exit_code == 1
    study = only_study()
    assert {r.folder.parent.name: str(r.status()) for r in study.runs} == {
        "sgd": "failed",
        "adam": "finished",
        "tuned": "failed",  # its parent has no checkpoint
    }
    assert "ValueError: something broke" in result.stderr
    assert "Traceback" not in result.output
    log = (study.runs[0].folder / "log.txt").read_text()
    assert "Traceback" in log
    assert "something broke" in log
    monkeypatch.delenv("TOY_EVENT")
    result = CliRunner().invoke(cli, ["resume", "-q"])
    assert result.exit_code == 0, result.output
    assert {str(r.status()) for r in study.runs} == {"finished"}


def test_the_users_mistake_is_said_once_and_counted(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause(monkeypatch, "user error", "step 1", "sgd")
    result = run("arm=sgd", "seeds=[0,1,2]", "-q")
    assert result.exit_code == 2
    assert result.stderr.count("The toy was told to fail.") == 1
    assert "(3 runs)" in result.stderr


@pytest.mark.parametrize(
    "typed", [["optimizer.lr=1e30"], ["optimizer.lr=1e12", "schedule=constant"]]
)
def test_a_diverged_run_is_a_result_not_a_failure(toy: Path, typed: list[str]) -> None:
    result = run("arm=sgd", "seeds=[0,1]", "training.epochs=100", *typed)
    assert result.exit_code == 0, result.output
    study = only_study()
    for each in study.runs:
        record = each.record()
        assert record.status == "diverged"
        assert "not finite" in record.reason
        assert all(math.isfinite(value) for value in each.summary().values())
        assert each.summary()["steps"] < 40, "it went on training"
        assert "test/loss" not in each.summary()
    assert "2 diverged" in result.stdout
    assert {r.status for r in results(study)} == {"diverged"}
    assert CliRunner().invoke(cli, ["resume", "-q"]).exit_code == 0


def test_a_run_that_diverges_late_keeps_its_last_good_metrics(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause(monkeypatch, "infinite weights", "step 40", "sgd")  # the last step of the second epoch
    assert run("arm=sgd", "seed=0", "training.epochs=4").exit_code == 0
    diverged = only_study().runs[0]
    assert diverged.status() == "diverged"
    summary = diverged.summary()
    assert summary["val/accuracy"] > 0.3
    assert math.isfinite(summary["val/loss"])
    assert summary["steps"] <= 60


def test_a_run_whose_last_step_ruins_it_has_diverged(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause(monkeypatch, "infinite weights", "step 20", "sgd")
    assert run("arm=sgd", "seed=0", "training.epochs=1").exit_code == 0
    assert only_study().runs[0].status() == "diverged"


def test_claims_see_what_became_of_runs(toy: Path, serial: Study) -> None:
    assert {r.arm for r in results(serial)} == {"sgd", "adam", "tuned", "tuned_twice"}
    (verdict,) = read_verdicts(serial)
    assert verdict.id == "T1"
    assert json.loads(serial.verdicts_file.read_text())["claims"][0]["verdict"] == str(
        verdict.verdict
    )


def test_verdicts_that_were_changed_are_not_believed(serial: Study, tmp_path: Path) -> None:
    copied = Study(Path(shutil.copytree(serial.folder, tmp_path / "copied")))
    (before,) = read_verdicts(copied)
    text = copied.verdicts_file.read_text()
    copied.verdicts_file.write_text(text.replace(before.id, "T2"))
    with pytest.raises(UserError, match="is damaged: its checksum is wrong"):
        read_verdicts(copied)
    claims = json.loads(text)["claims"]
    copied.verdicts_file.write_text(json.dumps(claims))  # as earlier versions wrote it
    assert read_verdicts(copied) == [before]


def test_an_arm_that_equals_another_is_judged_by_its_runs(
    toy: Path, serial: Study, tmp_path: Path
) -> None:
    copied = Study(Path(shutil.copytree(serial.folder, tmp_path / "copied")))
    copied.update(layers=copied.about.layers[:1], twins={"tuned": "sgd"})
    assert {run.record().arm for run in copied.runs} == {"sgd", "adam"}
    (verdict,) = judge_study(copied)
    assert verdict.checks[0].effect == 0
    assert verdict.checks[0].seeds == len(copied.runs) / 2


def test_grids_and_single_arms_are_not_judged(toy: Path) -> None:
    result = CliRunner().invoke(
        cli, [*SHORT, "n_jobs=1", "-m", "arm=sgd", "seed=0", "optimizer.lr=0.1,0.01"]
    )
    assert result.exit_code == 0, result.output
    study = only_study()
    assert read_verdicts(study) == []
    assert [dict(r.point) for r in results(study)] == [
        {"optimizer.lr": 0.1},
        {"optimizer.lr": 0.01},
    ]
    assert "optimizer.lr=0.01" in result.output


@pytest.mark.slow
def test_a_worker_that_is_killed_is_said_in_a_line(toy: Path) -> None:
    event = json.dumps({"what": "SIGKILL", "at": "step 10", "arm": "adam"})
    code, output = repro([*SHORT, "arm=[sgd,adam]", "n_jobs=2", "-q"], toy, {"TOY_EVENT": event})
    assert code == 1
    assert "worker process was killed" in output
    assert "Traceback" not in output
    assert "interrupted" in {str(each.status()) for each in only_study().runs}


@pytest.mark.parametrize(
    ("n_jobs", "typed", "runs", "expected"),
    [
        (2, [], 8, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        (2, [], 1, ["hydra/launcher=basic"]),
        ("auto", [], 3, ["hydra/launcher=basic"]),
        (2, ["hydra/launcher=basic"], 8, ["hydra/launcher=basic"]),
        (1, ["hydra/launcher=joblib"], 8, ["hydra/launcher=joblib"]),
    ],
)
def test_who_chooses_the_launcher(
    toy: Path, n_jobs: int | str, typed: list[str], runs: int, expected: list[str]
) -> None:
    hardware = plan_study(["paper=toy", "arm=sgd", "hardware=cpu"]).runs[0].config.hardware
    assert launcher_overrides(hardware, n_jobs, typed, runs) == expected


def test_an_unknown_launcher_is_refused(toy: Path) -> None:
    result = run("hydra/launcher=joblb")
    assert result.exit_code == 2
    assert "Did you mean 'joblib'" in result.stderr
    assert not Path("outputs").exists()
