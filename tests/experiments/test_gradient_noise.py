"""What is special to gradient noise: networks side by side, from starts that differ in nothing."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.gradient_noise.module import RestartTraining
from rooms import configs, evaluated, finished, logged, plan, refusal, summaries
from torch import Tensor, nn

from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module
from repro.training.supervised import Supervised

PAPER = load_paper("gradient_noise")
SMALL = ["paper=gradient_noise", "seed=0"]
TINY = ["model.depth=3", "model.width=8", "model.members=2", "training.val_every=1"]


@pytest.mark.parametrize("scale", list(PAPER.scales))
def test_no_arm_equals_another(scale: str) -> None:
    assert not plan("paper=gradient_noise", f"scale={scale}").notes


def test_arms_differ_in_noise_alone() -> None:
    runs = configs("paper=gradient_noise", "scale=smoke", "arm=[simple,simple_noise]")
    modules: list[Any] = [build_module(config) for config in runs.values()]
    plain, noisy = modules
    assert plain.method.std == 0 < noisy.method.std
    starts = []
    for config in runs.values():
        torch.manual_seed(1)
        model: Any = build_module(config).model
        starts.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*starts)


def test_from_zero_only_class_frequencies_are_learnt(study: Study) -> None:
    zero = summaries(study)["zero"]
    assert zero["train/loss"] == pytest.approx(2.3026, abs=0.01)
    assert zero["test/share_above_0.5"] == 0


@pytest.mark.parametrize(
    ("scale", "arm", "parameters"),
    [
        # Per network: 784-50-(19 x 50)-10 with biases; (3 + 1) tables of words and of ages.
        ("full", "zero", 39_250 + 19 * 2_550 + 510),
        ("full_babi", "babi", 4 * 50 * (195 + 50)),
        ("full_neural_gpu", "neural_gpu", 2 * 3 * (24 * 24 * 9 + 24) + 4 * 24 + 24 * 4 + 4),
    ],
)
def test_full_scales_build_the_papers_models(scale: str, arm: str, parameters: int) -> None:
    (config,) = configs("paper=gradient_noise", f"scale={scale}", f"arm={arm}").values()
    with torch.device("meta"):
        module: Any = build_module(config)
    members = module.model.members
    assert sum(p.numel() for p in module.model.parameters()) == members * parameters


@pytest.mark.parametrize(
    "typed",
    [
        ["arm=dropout", "optimizer.lr=0.3", "method.schedule=poly", *TINY],
        ["arm=dropout", "optimizer.lr=0.3", "method.schedule=error_scaled", *TINY],
        ["arm=memory_two_stage_noise", "model.network.linear_epochs=2", "model.members=2"],
    ],
)
def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path, typed: list[str]) -> None:
    # Within an epoch of 40, or of 20, steps.
    same_after_a_kill(tmp_path, 57, *SMALL, "training.epochs=3", *typed)


def shown(members: int, *typed: str) -> Any:
    """A module that takes the logits of so many networks for its inputs."""
    (config,) = configs("paper=gradient_noise", "scale=smoke", "arm=simple", *typed).values()
    module: Any = build_module(config)
    module.members, module.model = members, nn.Identity()
    module.val_accuracy, module.late_accuracy = torch.zeros(members), torch.zeros(members, 2)
    return module


def right_on(*examples: int) -> tuple[Tensor, Tensor]:
    """A batch on which networks are right on so many of 100 examples."""
    output = torch.zeros(len(examples), 100, 10)
    for member, right in enumerate(examples):
        output[member, :right, 3] = output[member, right:, 4] = 1.0
    return output, torch.full((100,), 3)


def test_shares_of_networks_by_their_accuracies() -> None:
    module = shown(4)
    module.success = (0.5, 0.95, 0.99)
    found = evaluated(module, [right_on(100, 99, 95, 20)])
    accuracy = (1 + 0.99 + 0.95 + 0.2) / 4
    assert found["test/accuracy"] == pytest.approx(accuracy)
    assert found["test/loss"] == pytest.approx(math.log(math.e + 9) - accuracy)
    assert found["test/share_above_0.5"] == 3 / 4
    assert found["test/share_above_0.95"] == 3 / 4
    assert found["test/share_above_0.99"] == 2 / 4


def test_late_accuracy_and_the_best_network_are_those_of_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of twenty epochs the last two are late; in the end the second network is the best."""
    module = shown(2)
    monkeypatch.setattr(RestartTraining, "current_epoch", property(lambda self: self.done))
    state = {"state": SimpleNamespace(fn=None), "sanity_checking": False}
    module.trainer = SimpleNamespace(max_epochs=20, world_size=1, **state)
    found = []
    for module.done, accuracies in ((17, (50, 25)), (18, (100, 25)), (19, (50, 100))):
        step = functools.partial(module.validation_step, right_on(*accuracies), 0)
        found.append(
            logged(module, module.on_validation_start, step, module.on_validation_epoch_end)
        )
    assert [each["val/accuracy_best"] for each in found] == [0.5, 1.0, 1.0]
    assert "val/accuracy_late" not in found[0]
    assert found[2]["val/accuracy_late"] == (0.75 + 0.625) / 2
    test = evaluated(module, [right_on(75, 50)])
    assert test["test/accuracy_best"] == 0.5
    assert "test/accuracy_late" not in test


def test_each_network_descends_its_own_loss_and_is_told_its_own_error() -> None:
    """The right class has probability 3/4, 1/4 or none that is finite, on three examples of four.

    The loss is the mean of the finite ones, its gradient that of their sum.
    """
    module = shown(3, "method=gradient_noise", "method.schedule=error_scaled")
    module._watch = lambda _: None
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)], [math.inf, 0.0]])
    x = logits[:, None].repeat(1, 4, 1).requires_grad_()
    loss = module.loss((x, torch.tensor([0, 0, 0, 1])))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-math.log(3 / 16) / 2)
    assert x.grad is not None
    assert x.grad[:2, 0].flatten().tolist() == pytest.approx([-1 / 16, 1 / 16, -3 / 16, 3 / 16])
    assert module.method.error.tolist() == [0.25, 0.75, 1.0]


def test_steps_until_networks_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smoothed by a half, 3, 0.2, 0.2 are 3, 1.6, 0.9: below 1 after three steps; 3, 3, 3 never."""
    (config,) = configs("paper=gradient_noise", "scale=smoke", "arm=simple").values()
    module: Any = build_module(config)
    module.smoothing, module.escape_loss = 0.5, 1.0
    found: dict[str, float] = {}
    monkeypatch.setattr(RestartTraining, "global_step", property(lambda self: self.done))
    monkeypatch.setattr(RestartTraining, "log", lambda _, name, value: found.update({name: value}))
    monkeypatch.setattr(Supervised, "on_train_epoch_end", lambda self: None)
    for module.done, loss in enumerate((3.0, 0.2, 0.2)):
        module._watch(torch.tensor([loss, 3.0]))
    module.done = 3
    module.on_train_epoch_end()
    assert found["train/steps_to_escape"] == (3 + 4) / 2


def test_good_starts_are_judged_at_the_published_noise() -> None:
    runs = configs("paper=gradient_noise", "scale=mini_table1")
    assert runs["zero_noise"].method.eta == 0.05
    for arm, config in runs.items():
        if arm.endswith(("_published_noise", "_d10_noise")):
            plain = arm.removesuffix("_noise").removesuffix("_published")
            assert (config.method.eta, config.method.schedule) == (0.01, "poly")
            assert config.model == runs[plain if plain in runs else "simple_d10"].model
    assert runs["unclipped_d10_noise"].training.clip_norm is None


def test_a_network_that_diverges_does_not_disturb_the_others() -> None:
    (config,) = configs("paper=gradient_noise", "scale=smoke", "arm=simple").values()
    module: Any = build_module(config)
    with torch.no_grad():
        module.model.weights[0][0] = torch.inf
    batch = (torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
    module.trainer = None
    module.method.attach(module.model)
    losses = module.losses(module.model(batch[0]), batch[1])
    assert not losses[0].isfinite()
    assert losses[1].isfinite()
    right = module._right(module.model(batch[0]), batch[1])
    assert not right[0].any()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("method=none", "method.schedule=none"),
        ("model=mlp", "choose model=stacked_mlp"),
        ("model=memory_network", "dataset=babi_like"),
        ("training.clip_norm=0", "clip_norm"),
    ],
)
def test_what_cannot_work_is_one_line(typed: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMALL, "arm=simple_noise", typed)


def test_missing_babi_is_one_clear_line(tmp_path: Path) -> None:
    typed = ["scale=full_babi", "arm=babi", "hardware=cpu", f"data.root={tmp_path}/hf"]
    assert "qa1_*_train.txt" in refusal(tmp_path, *SMALL, *typed, lines=3)


def test_the_noise_works_in_another_room(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "method=gradient_noise", "seed=0"]
    assert finished(tmp_path, *typed).summary()["noise/std"] > 0
