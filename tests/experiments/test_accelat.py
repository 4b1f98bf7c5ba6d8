"""What is special to AccelAT: static examples, schedules that watch accuracy, published starts."""

from __future__ import annotations

import copy
import functools
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from repro.experiments.accelat import module as room
from repro.experiments.accelat import rotations as pretext
from repro.experiments.accelat.module import AdversariallyTrained, epochs_to
from repro.experiments.accelat.rotations import quarter_turns, rotations
from rooms import configs, evaluated, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.data.base.files import cache_home
from repro.errors import UserError
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.series import read_series
from repro.records.study import Study
from repro.training import execute

PAPER = load_paper("accelat")
SMALL = ("paper=accelat", "scale=smoke")


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """One short run of AccelAT on static examples."""
    return configs(*SMALL, "arm=accelat", "training.epochs=1")["accelat"]


def fitted(config: DictConfig, tmp_path: Path) -> tuple[AdversariallyTrained, Any]:
    """One run as the engine makes it, but with the module and the data in hand."""
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.dataset)
    module: Any = execute.build_module(config, data)
    trainer = execute.build_trainer(config, logger=False, enable_checkpointing=False,
                                    default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert isinstance(module, AdversariallyTrained)
    return module, data


def test_the_worst_accuracy_is_no_better_than_any(study: Study) -> None:
    for summary in summaries(study).values():
        assert {"val/reached", "lr"} <= summary.keys()
        values = (v for k, v in summary.items() if k.startswith("test/") and "_accuracy" in k)
        assert summary["test/worst_accuracy"] <= min(values)


@pytest.mark.parametrize(
    # Without the 1000-way classifier: torchvision's ResNet-50, Keras' and timm's MobileNet.
    ("scale", "parameters"),
    [("full", 23_528_522), ("full_mobilenet", 3_217_226)],
)
def test_full_has_the_published_networks_and_settings(scale: str, parameters: int) -> None:
    (config,) = configs("paper=accelat", f"scale={scale}", "arm=free_at").values()
    with torch.device("meta"):
        module: Any = execute.build_module(config)
    assert sum(p.numel() for p in module.model.parameters()) == parameters
    assert (config.optimizer.lr, config.threat.eps) == (1e-3, 0.01)


def test_the_threat_reaches_every_attack() -> None:
    (config,) = configs(*SMALL, "arm=pgd_at", "threat.eps=0.07").values()
    with torch.device("meta"):
        module: Any = execute.build_module(config)
    attacks = [module.method.attack, module.probe, *module.attacks.values()]
    assert [attack.eps for attack in attacks] == [0.07] * 6 + [0.6]
    assert module.method.attack.bounds == [0, 1]


def test_static_examples_are_the_same_for_every_schedule_and_from_the_cache(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = configs(*SMALL, "arm=cosine_high", "training.epochs=1").values()
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "empty"))
    anew, again, schedule = (fitted(each, tmp_path) for each in (config, config, other))
    runs = [again, schedule, anew]
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
    start: Any = execute.build_module(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start.start(start.model, fresh, torch.device("cpu"))
    before, after = start.model.state_dict(), module.model.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == ("running" in name or "num_b" in name)


def test_the_rule_sees_the_control_split_and_acts_an_epoch_later(tmp_path: Path) -> None:
    typed = [*SMALL, "seed=0", "arm=accelat", "schedule.threshold=10", "training.epochs=9"]
    run = finished(tmp_path, *typed)
    rows = [row for row in read_series(run.folder / "metrics.csv") if "lr" in row]
    high = run.config().rates.high
    assert [row["lr"] for row in rows] == pytest.approx([high] * 7 + [0.8 * high] * 2)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("module.refresh=sometimes", "refresh is static or batch"),
        ("module.control_split=train", "control_split is val or test"),
        ("module.static_sees=labels", "static_sees is logits or probabilities"),
        ("schedule.factor=2", "factor lies in"),
        ("schedule.watch=acuracy", "Did you mean 'accuracy'"),
        ("module.start=${starts.published}", "name another one with starts.published.file="),
        (
            "module.attacks={l2:{_target_:repro.toolbox.attacks.PGD,eps:1,norm:l3}}",
            "norm is linf or l2, not 'l3'",
        ),
        ("dataset=wine", "images"),
    ],
)
def test_what_cannot_work_is_one_line(typed: str, message: str, tmp_path: Path) -> None:
    typed_all = [*SMALL, "seed=0", "arm=accelat", "training.epochs=1", typed]
    assert message in refusal(tmp_path, *typed_all, lines=2)


@pytest.mark.parametrize("typed", ["schedule=accuracy_slope", "method=free_at"])
def test_schedule_and_methods_work_in_other_rooms(typed: str, tmp_path: Path) -> None:
    finished(tmp_path, "paper=dgc", "scale=smoke", "arm=dense", "seed=0", typed)


# -- The parts --


def test_turns() -> None:
    turned, turns = quarter_turns(torch.arange(4.0).view(1, 1, 2, 2))
    assert turned.flatten(1).tolist() == [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]
    assert turns.tolist() == [0, 1, 2, 3]


def test_turns_are_of_square_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretext, "cached_arrays", lambda _key, make: make())
    for shape, fits in (((2, 1, 3, 3), True), ((2, 1, 3, 4), False), ((2, 9), False)):
        data: Any = SimpleNamespace(splits={"train": (torch.zeros(shape),)}, seed=0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5))
        with nullcontext() if fits else pytest.raises(UserError, match="rotates square images"):
            rotations(model, data, torch.device("cpu"), steps=1, batch_size=2)
        assert model(torch.zeros(1, 1, 3, 3)).shape == (1, 5)  # as many classes as before


def logits(*classes: int) -> Tensor:
    """Logits of three classes that say these."""
    return nn.functional.one_hot(torch.tensor(classes), 3).float()


def with_logits(**knobs: Any) -> Any:
    """The room's module for inputs that are logits already, outside of a run."""
    (config,) = configs(*SMALL, "arm=accelat", "training.epochs=1").values()
    module: Any = execute.build_module(config)
    module.model = nn.Identity()
    for name, value in knobs.items():
        setattr(module, name, value)
    return module


def test_accuracies_are_shares_of_right_examples() -> None:
    """Of four examples: right are three, as static ones one, under attacks three and four."""
    attacks = {
        "one": lambda *_: logits(0, 1, 0, 0),
        "other": lambda *_: logits(0, 1, 2, 0),
    }
    y = torch.tensor([0, 1, 2, 0])
    logs = evaluated(with_logits(attacks=attacks), [(logits(0, 1, 2, 1), y, logits(1, 1, 0, 2))])
    assert logs["test/accuracy"] == 3 / 4
    assert logs["test/adversarial_accuracy"] == 1 / 4
    assert (logs["test/one_accuracy"], logs["test/other_accuracy"]) == (3 / 4, 1)
    assert logs["test/worst_accuracy"] == 2 / 4  # the first two are right under all and without


@pytest.mark.parametrize("sees", ["logits", "probabilities"])
def test_training_sees_static_examples_alone_and_the_other_splits_have_both(
    sees: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack that answers with what it sees, in seven seconds."""
    monkeypatch.setattr(room, "cached_arrays", lambda _key, make: make())
    clock = iter([3.0, 10.0])
    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    x, y = logits(0, 1, 1), torch.tensor([0, 1, 2])
    data: Any = SimpleNamespace(name="d", seed=0)
    data.splits = dict.fromkeys(("train", "val", "test"), (x, y))
    module = with_logits(static_sees=sees)
    assert module._make_static(lambda model, x, _y: model(x), data, torch.device("cpu")) == 7
    seen = x if sees == "logits" else x.softmax(1)
    assert torch.equal(data.splits["train"][0], seen)
    for split in ("val", "test"):
        clean, _, adversarial = data.splits[split]
        assert torch.equal(clean, x)
        assert torch.equal(adversarial, seen)


def test_the_clock_stops_at_the_first_epoch_that_reaches_the_target() -> None:
    """Four epochs of 7 seconds: one, three, four and two of four are right, where two thirds do."""
    module = with_logits(target=2 / 3, static=SimpleNamespace(steps=10))
    module.method = SimpleNamespace(metrics=lambda: {"cost/gradients_per_epoch": 8.0})
    module.trainer = SimpleNamespace(world_size=1, testing=False, sanity_checking=False)
    y = torch.zeros(4, dtype=torch.long)
    adversarial = (logits(0, 1, 1, 1), logits(0, 0, 0, 1), logits(0, 0, 0, 0), logits(0, 0, 1, 1))
    for epoch, (x, lr) in enumerate(zip(adversarial, (0.4, 0.3, 0.2, 0.1), strict=True), 1):
        module.seconds = 7.0 * epoch
        module.optimizers = lambda lr=lr: SimpleNamespace(param_groups=[{"lr": lr}])
        step = functools.partial(module.validation_step, (logits(0, 0, 0, 0), y, x), 0)
        found = logged(module, module.on_validation_start, step, module.log_measured)
        assert ("val/epochs_to_target" in found) == (found["val/reached"] == 1) == (epoch > 1)
    assert found["val/adversarial_accuracy"] == 2 / 4
    assert found["val/epochs_to_target"] == 2
    assert found["val/gradients_to_target"] == 2 * 8 + 10
    assert found["time/seconds_to_target"] == 14
    assert found["val/lr_at_peak"] == 0.2


def test_clock() -> None:
    assert epochs_to([0.1, 0.9, 0.8, 0.95], 0.9) == 2
    assert epochs_to([0.1], 0.9) is None
