"""What training modules share: means, steps that Lightning counts, schedules, kept state."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.toolbox.method import Method
from repro.training.execute import build_trainer
from repro.training.procedure import Evaluated, Means, Procedure, model_weights, refuse_methods


class Counting(Procedure):
    """Trains nothing: every step counts."""

    KEPT: ClassVar = ("seen",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self.global_step)
        self.tick()
        if self.global_step == 3:
            self.trainer.should_stop = True


class Telling(Counting):
    """Says at once what it found, without steps that measure."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/seen", float(len(self.seen)))

    def on_test_epoch_end(self) -> None:
        self.log("test/seen", float(len(self.seen)))


class Reaching(Evaluated):
    """Descends to a target, and measures how far away it is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.5), **settings)
        self.x = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.descend((self.x - 1).square().sum() / 2)

    def evaluate(self, batch: Any, batch_idx: int) -> None:
        self.note({"distance": (self.x - 1).norm(), "batches": float(batch_idx)}, weight=2)


class Halving:
    """A schedule that watches a measure."""

    watch = "distance"

    def __init__(self, optimizer: Any, steps: int) -> None:
        self.optimizer = optimizer
        self.told: list[float] = []

    def step(self, value: float) -> None:
        self.told.append(value)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.fixture
def fit(toy: Path) -> Any:
    def run(module: Procedure, *typed: str, **more: Any) -> Any:
        config = plan_study(["paper=toy", "arm=sgd", "seed=0", *typed]).runs[0].config
        trainer = build_trainer(config, default_root_dir=toy, logger=False, **more)
        trainer.fit(module, datamodule=instantiate(config.dataset))
        return trainer

    return run


def test_means_are_those_of_torchmetrics_also_without_what_is_not_a_number() -> None:
    from torchmetrics import MeanMetric

    means, metric = Means(), MeanMetric()
    generator = torch.Generator().manual_seed(0)
    for weight in (3, 1, 250):
        values = torch.randn(5, generator=generator)
        means.add("x", values, weight)
        metric.update(values, weight)
    with pytest.warns(UserWarning, match="nan"):
        metric.update(torch.tensor(torch.nan), 9)
    means.add("x", torch.tensor(torch.nan), 9)
    assert torch.equal(means.take()["x"], metric.compute())
    means.add("x", torch.tensor(torch.inf), 1)
    assert means.take()["x"] == torch.inf


def test_steps_are_counted_where_nothing_is_trained(fit: Any) -> None:
    module = Counting()
    trainer = fit(module)
    assert trainer.global_step == 3
    assert module.seen == [0, 1, 2]
    assert module.state_dict() == {}


def test_what_is_told_at_once_needs_no_steps_that_measure(fit: Any) -> None:
    module = Telling()
    trainer = fit(module)
    assert trainer.callback_metrics["val/seen"] == 3
    trainer.test(module, datamodule=trainer.datamodule, verbose=False)
    assert trainer.callback_metrics["test/seen"] == 3


def test_what_is_kept_returns(fit: Any, toy: Path) -> None:
    module, again = Counting(), Counting()
    fit(module).save_checkpoint(toy / "some.ckpt")
    checkpoint = torch.load(toy / "some.ckpt", weights_only=True)
    again.on_load_checkpoint(checkpoint)
    assert again.seen == [0, 1, 2]


def test_descends_what_is_trained_and_measures_it(fit: Any) -> None:
    module = Reaching()
    trainer = fit(module, "training.epochs=1", "training.steps_per_epoch=3")
    assert torch.equal(module.x, torch.full((2,), 1 - 0.5**3))
    assert module.frozen.item() == 1
    distance = trainer.callback_metrics["val/distance"]
    assert distance == pytest.approx(0.5**3 * 2**0.5)


def test_gradients_are_clipped(fit: Any) -> None:
    module = Reaching(clip_norm=0.1)
    fit(module, "training.epochs=1", "training.steps_per_epoch=1")
    assert module.x.norm().item() == pytest.approx(0.05, rel=1e-4)
    with pytest.raises(UserError, match="positive number or null, not 0"):
        Reaching(clip_norm=0)


def test_a_schedule_that_watches_sees_each_validation(fit: Any) -> None:
    module = Reaching(schedule=Halving)
    fit(module, "training.epochs=2", "training.steps_per_epoch=1")
    schedule: Any = module.lr_schedulers()
    assert schedule.told == pytest.approx([0.5 * 2**0.5, 0.25 * 2**0.5])


def test_a_schedule_that_watches_what_is_not_measured_is_refused(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Halving, "watch", "distanse")
    with pytest.raises(UserError, match=r"schedule\.watch=distanse.*Did you mean 'distance'"):
        fit(Reaching(schedule=Halving), "training.epochs=1", "training.steps_per_epoch=1")


def test_the_weights_of_a_model_are_found_by_their_own_names() -> None:
    weights = {"model.0.weight": torch.ones(1), "clock": torch.zeros(1)}
    assert model_weights({"state_dict": weights}) == {"0.weight": torch.ones(1)}


def test_only_the_plain_method_passes() -> None:
    class Other(Method):
        pass

    refuse_methods(Method(), "no {method}")
    with pytest.raises(UserError, match="no Other here"):
        refuse_methods(Other(), "no {method} here")
