"""What is special to gradient noise: networks side by side, from starts that differ in nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.gradient_noise.module import RestartTraining
from rooms import configs, evaluated, finished, plan, refusal, summaries
from torch import nn

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


def test_shares_of_networks_by_their_accuracies() -> None:
    """Four networks that are right on 100, 99, 95 and 20 of 100 examples."""
    (config,) = configs("paper=gradient_noise", "scale=smoke", "arm=simple").values()
    module: Any = build_module(config)
    module.members, module.success = 4, (0.5, 0.95, 0.99)
    output = torch.zeros(4, 100, 10)
    for member, right in enumerate((100, 99, 95, 20)):
        output[member, :right, 3] = output[member, right:, 4] = 1.0
    module.model = nn.Identity()
    found = evaluated(module, [(output, torch.full((100,), 3))])
    assert found["test/accuracy"] == pytest.approx((1 + 0.99 + 0.95 + 0.2) / 4)
    assert found["test/share_above_0.5"] == 3 / 4
    assert found["test/share_above_0.95"] == 3 / 4
    assert found["test/share_above_0.99"] == 2 / 4


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
