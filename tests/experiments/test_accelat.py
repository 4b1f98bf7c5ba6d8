"""The room of AccelAT: at scale=smoke through the engine, and by composition at the others."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from repro.experiments.accelat.module import AdversariallyTrained, epochs_to
from repro.experiments.accelat.pretraining import (
    PublishedWeights,
    head_name,
    quarter_turns,
    replace_head,
)
from torch import nn

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.data.base.files import cache_home
from repro.errors import UserError
from repro.launching.local import run_study
from repro.planning.instantiate import instantiate
from repro.planning.plan import PlannedRun, plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.series import read_series
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training import execute

PAPER = load_paper("accelat")
SAMPLE = ("accelat", "deepfool_accelat", "pgd_at_accelat", "free_at")
SHORT = ("module.attacks={}",)  # where only the training matters: no attacks at the end
BRIEF = ("training.epochs=1", *SHORT)
# Without the 1000-way classifier: torchvision's ResNet-50, Keras' and timm's MobileNet.
PARAMETERS = {"full": 23_528_522, "full_mobilenet": 3_217_226}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Starts and static examples are shared by the tests here, and kept out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def planned(*typed: str) -> list[PlannedRun]:
    scale = [] if any(text.startswith("scale=") for text in typed) else ["scale=smoke"]
    return plan_study(["paper=accelat", "seeds=[0]", *scale, *typed]).runs


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Some arms at scale=smoke, run once for all tests here."""
    arms = f"arm=[{','.join(SAMPLE)}]"
    plan = plan_study(["paper=accelat", "scale=smoke", "seeds=[0]", "n_jobs=1", arms])
    made = create_study(plan, tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """One short run of AccelAT on static examples."""
    return planned("arm=accelat", *BRIEF)[0].config


def fitted(config: DictConfig, tmp_path: Path) -> tuple[AdversariallyTrained, Any]:
    """One run as the engine makes it, but with the module and the data in hand."""
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.dataset)
    module = execute.build_module(config, data)
    trainer = execute.build_trainer(config, logger=False, enable_checkpointing=False,
                                    default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert isinstance(module, AdversariallyTrained)
    return module, data


def test_arms_finish_and_report_their_metrics(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    for run in study.runs:
        summary = run.summary()
        always = {"val/peak", "val/reached", "val/late_std", "test/worst_accuracy", "lr"}
        assert always <= summary.keys()
        each = [v for k, v in summary.items() if k.startswith("test/") and k.endswith("_accuracy")]
        assert summary["test/worst_accuracy"] <= min(each)


def test_smoke_is_judged(study: Study) -> None:
    assert {v.verdict for v in judge_study(study)} == {Verdict.NOT_AT_SCALE}


def test_the_figures_are_written(study: Study) -> None:
    names = {path.name for path in draw_study(study)}
    assert names == {f"{n}.{s}" for n in ("schedules", "robustness") for s in ("png", "svg")}


@pytest.mark.parametrize("scale", PAPER.scales)
def test_arms_compose_at_every_scale(scale: str) -> None:
    """All at smoke, and elsewhere one of each kind: scales and arms share no keys."""
    arms = list(PAPER.arms) if scale == "smoke" else ["deepfool_accelat", "free_at"]
    runs = planned(f"scale={scale}", f"arm=[{','.join(arms)}]")
    assert {run.arm for run in runs} == set(arms)
    for run in runs:
        with torch.device("meta"):
            module = execute.build_module(run.config)
    parameters = sum(p.numel() for p in module.model.parameters())
    assert parameters == PARAMETERS.get(scale, parameters)
    if scale.startswith("full"):
        assert (runs[0].config.optimizer.lr, runs[0].config.threat.eps) == (1e-3, 0.01)


def test_the_threat_reaches_every_attack() -> None:
    (run,) = planned("arm=pgd_at", "threat.eps=0.07")
    with torch.device("meta"):
        module = execute.build_module(run.config)
    attacks = [module.method.attack, module.probe, *module.attacks.values()]
    assert [attack.eps for attack in attacks] == [0.07] * 6 + [0.6]
    assert module.method.attack.bounds == [0, 1]


def test_static_examples_are_the_same_for_every_schedule_and_from_the_cache(
    config: DictConfig, tmp_path: Path
) -> None:
    (other,) = planned("arm=cosine_high", *BRIEF)
    anew = copy.deepcopy(config)
    anew.module.static_cache = anew.module.start.cache = False
    runs = [fitted(each, tmp_path) for each in (config, other.config, anew)]
    for split in ("train", "val", "test"):
        for one, *others in zip(*(data.splits[split] for _, data in runs), strict=True):
            assert all(torch.equal(one, each) for each in others)
    clean, _, adversarial = runs[0][1].splits["test"]
    assert 0 < (clean - adversarial).abs().max() <= 0.15 + 1e-6
    # What was made for the other arm is charged to this one's clock all the same.
    kept = [np.load(file) for file in (cache_home() / "decoded").glob("adversarial-*.npz")]
    (own,) = (each for each in kept if np.array_equal(each["test"], adversarial))
    assert runs[1][0].history[0]["seconds"] > own["seconds"] > 0
    trained = [module.model.state_dict() for module, _ in (runs[0], runs[2])]
    assert all(torch.equal(a, b) for a, b in zip(*(t.values() for t in trained), strict=True))


def test_no_radius_is_clean_training_and_norms_stay_frozen(
    config: DictConfig, tmp_path: Path
) -> None:
    harmless = copy.deepcopy(config)
    harmless.threat.eps = harmless.module.static.eps = 0
    module, data = fitted(harmless, tmp_path)
    x, _, adversarial = data.splits["val"]
    assert torch.equal(x, adversarial)
    fresh = instantiate(config.dataset)
    assert torch.equal(data.splits["train"][0], fresh.splits["train"][0])
    pl.seed_everything(config.seed, verbose=False)
    start = execute.build_module(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start.start(start.model, fresh, torch.device("cpu"))
    before, after = start.model.state_dict(), module.model.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == ("running" in name or "num_b" in name)


def test_the_rule_sees_the_control_split_and_acts_an_epoch_later(tmp_path: Path) -> None:
    typed = ["paper=accelat", "scale=smoke", "seed=0", "arm=accelat", "schedule.threshold=10"]
    made = create_study(plan_study([*typed, "training.epochs=9", *SHORT]), tmp_path)
    execute.execute(made.runs[0].folder)
    rows = [row for row in read_series(made.runs[0].folder / "metrics.csv") if "lr" in row]
    high = made.runs[0].config().rates.high
    assert [row["lr"] for row in rows] == pytest.approx([high] * 7 + [0.8 * high] * 2)


@pytest.mark.parametrize("arm", ["accelat", "free_at"])
def test_a_killed_run_ends_like_a_straight_one(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["paper=accelat", "scale=smoke", "seed=0", f"arm={arm}", "training.epochs=3", *SHORT]
    plan = plan_study(typed)
    straight, killed = (create_study(plan, tmp_path / name) for name in ("a", "b"))
    execute.execute(straight.runs[0].folder)
    steps = 0
    original = AdversariallyTrained.training_step

    def dying(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AdversariallyTrained, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(killed.runs[0].folder)
    assert killed.runs[0].status() == Status.INTERRUPTED
    assert execute.execute(killed.runs[0].folder) == Status.FINISHED
    one, other = (
        {k: v for k, v in each.runs[0].summary().items() if not k.startswith("time/")}
        for each in (straight, killed)
    )
    assert one == other


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("module.refresh", "sometimes", "module.refresh is static or batch"),
        ("module.control_split", "train", "module.control_split is val or test"),
        ("module.static_sees", "labels", "module.static_sees"),
        ("schedule.factor", 2, "factor lies in"),
        ("schedule.watch", "acuracy", "Did you mean 'accuracy'"),
        ("module.start.weights", "nowhere.pth", "There is no file nowhere.pth"),
        (
            "module.attacks",
            {"l2": {"_target_": "repro.toolbox.attacks.PGD", "eps": 1, "norm": "l3"}},
            "norm is linf or l2, not 'l3'",
        ),
    ],
)  # fmt: skip
def test_bad_configs_are_one_clear_line(
    config: DictConfig, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    changed = copy.deepcopy(config)
    OmegaConf.update(changed, key, value, force_add=True)
    with pytest.raises(UserError, match=message):
        fitted(changed, tmp_path)


def test_data_that_are_no_images_cannot_be_rotated(tmp_path: Path) -> None:
    (run,) = planned("arm=accelat", "dataset=wine")
    with pytest.raises(UserError, match="images"):
        fitted(run.config, tmp_path)


@pytest.mark.parametrize("typed", ["schedule=accuracy_slope", "method=free_at"])
def test_schedule_and_methods_work_in_other_rooms(typed: str, tmp_path: Path) -> None:
    plan = plan_study(["paper=dgc", "scale=smoke", "arm=dense", "seed=0", "n_jobs=1", typed])
    made = create_study(plan, tmp_path)
    run_study(made)
    assert made.runs[0].status() == Status.FINISHED


# -- The parts --


def test_weights_from_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 7))
    torch.save(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 99)).state_dict(), tmp_path / "w.pth")
    load = PublishedWeights(str(tmp_path / "w.pth"))
    load(model, None, torch.device("cpu"))  # type: ignore[arg-type]
    saved = torch.load(tmp_path / "w.pth")
    assert torch.equal(model[0].weight, saved["0.weight"])
    assert model[1].weight.shape == (7, 3)
    for first in (nn.Linear(5, 3), nn.Conv2d(1, 1, 1)):
        other = nn.Sequential(first, nn.Linear(3, 7))
        with pytest.raises(UserError, match="of another model"):
            load(other, None, torch.device("cpu"))  # type: ignore[arg-type]


def test_heads_and_turns() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert (head_name(model), replace_head(model, 5)) == ("2", 2)
    assert model(torch.zeros(1, 4)).shape == (1, 5)
    turned, turns = quarter_turns(torch.arange(4.0).view(1, 1, 2, 2))
    assert turned.flatten(1).tolist() == [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]
    assert turns.tolist() == [0, 1, 2, 3]


def test_clock() -> None:
    assert epochs_to([0.1, 0.9, 0.8, 0.95], 0.9) == 2
    assert epochs_to([0.1], 0.9) is None
