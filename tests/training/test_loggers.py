"""What trackers hold after a study: settings, metrics, files and verdicts; without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import repro

from repro.errors import UserError
from repro.planning import extras
from repro.planning.plan import plan_study
from repro.records.study import Study, find_studies

TWO_ARMS = ["paper=toy", "scale=smoke", "arm=[sgd,tuned]", "seed=0", "training.epochs=1"]
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of two arms that every tracker followed."""
    folder = tmp_path_factory.mktemp("tracked")
    config = str(Path(__file__).parents[1] / "support" / "toy_project" / "conf")
    arguments = [*TWO_ARMS, "n_jobs=1", "logger=[tensorboard,mlflow,wandb]", "-q"]
    environment = {**NO_NETWORK, "REPRO_CONFIG_DIR": config}
    code, output = repro(["run", *arguments], folder, environment)
    assert code == 0, output
    assert "Not sent" not in output
    (study,) = find_studies(folder / "outputs")
    return study


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def mlflow_runs(outputs: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "toy smoke"]
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name.partition("/")[2]: run for run in found}


def test_tensorboard_holds_metrics_settings_and_verdicts(tracked: Study) -> None:
    for run in tracked.runs:
        found = events(run.folder)
        (accuracy,) = found.Scalars("test/accuracy")
        assert accuracy.value == pytest.approx(run.summary()["test/accuracy"])
        assert "_hparams_/session_start_info" in found.PluginTagToContent("hparams")
        assert "summary.json/text_summary" in found.Tags()["tensors"]
    (text,) = events(tracked.folder).Tensors("verdicts/text_summary")
    assert b"| T1 |" in text.tensor_proto.string_val[0]


def test_mlflow_holds_metrics_settings_files_and_verdicts(tracked: Study) -> None:
    outputs = tracked.folder.parents[2]
    found = mlflow_runs(outputs)
    assert set(found) == {"", "sgd/seed=0", "tuned/seed=0"}
    for run in tracked.runs:
        one = found[run.folder.relative_to(tracked.folder).as_posix()]
        assert one.data.params["optimizer.lr"] == str(run.config().optimizer.lr)
        accuracy = run.summary()["test/accuracy"]
        assert one.data.metrics["test/accuracy"] == pytest.approx(accuracy)
        assert one.info.status == "FINISHED"
        kept = outputs / "mlflow" / one.info.run_id / "artifacts" / "summary.json"
        assert json.loads(kept.read_text()) == run.summary()
    verdicts = outputs / "mlflow" / found[""].info.run_id / "artifacts" / "verdicts.md"
    assert "| T1 |" in verdicts.read_text()


def test_wandb_works_offline_one_run_each(tracked: Study) -> None:
    folders = list(tracked.folder.parents[2].glob("wandb/offline-run-*"))
    assert len(folders) == 3, "two runs and the study"
    (verdicts,) = (each for each in folders if (each / "files" / "verdicts.json").is_file())
    logs = [next(each.glob("run-*.wandb")) for each in folders if each != verdicts]
    for run in tracked.runs:
        name = run.folder.relative_to(tracked.folder).as_posix().encode()
        (log,) = (each for each in logs if name in each.read_bytes())
        assert b"val/accuracy" in log.read_bytes()
        assert b"optimizer.lr" in log.read_bytes()
        kept = log.parent / "files" / "summary.json"
        assert json.loads(kept.read_text()) == run.summary()


def test_resumed_run_goes_on_in_the_same_mlflow_run(toy: Path) -> None:
    event = {"what": "SIGKILL", "at": "step 3", "once": str(toy / "it-happened")}
    one = ["paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.epochs=1", "logger=mlflow"]
    code, output = repro(["run", *one, "-q"], toy, {"TOY_EVENT": json.dumps(event)})
    assert code == -9, output
    code, output = repro(["resume", "-q"], toy)
    assert code == 0, output
    found = mlflow_runs(toy / "outputs")
    assert set(found) == {"", "sgd/seed=0"}
    assert found["sgd/seed=0"].data.metrics["test/accuracy"] > 0


def test_failed_run_is_failed_in_mlflow(toy: Path) -> None:
    event = json.dumps({"what": "error", "at": "step 3"})
    one = ["paper=toy", "scale=smoke", "arm=sgd", "seed=0", "training.epochs=1", "logger=mlflow"]
    code, output = repro(["run", *one, "-q"], toy, {"TOY_EVENT": event})
    assert code == 1, output
    assert mlflow_runs(toy / "outputs")["sgd/seed=0"].info.status == "FAILED"


def test_missing_tracker_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"wandb is not inst.*'gradient-repro\[wandb\]'"):
        plan_study(["paper=toy", "scale=smoke", "logger=wandb"])
    plan = plan_study(["paper=toy", "scale=smoke", "logger=csv"])
    assert not plan.runs[0].config.logger.loggers


def test_unknown_tracker_is_named(toy: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'tensorboard'"):
        plan_study(["paper=toy", "scale=smoke", "logger=tensorbord"])
