"""What is special to RADIANCE: what its numbers mean, who learns what, its data, its full scale."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from repro.experiments.radiance.module import Coverage
from rooms import configs, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.errors import UserError
from repro.planning.instantiate import instantiate
from repro.records import files
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("radiance")
GROUPS = (
    "plan", "beam_20", "beam_30", "beam_60", "ghz_5", "seen_beam_30", "seen_beam_60", "seen_ghz_5"
)  # fmt: skip


def built(arm: str = "radiance", scale: str = "mini", *typed: str) -> Coverage:
    """A module, away from any trainer."""
    (config,) = configs("paper=radiance", f"scale={scale}", f"arm={arm}", *typed).values()
    module = build_module(config)
    assert isinstance(module, Coverage)
    rates = SimpleNamespace(param_groups=[{"lr": 0.001, "initial_lr": 0.002}])
    module.trainer = SimpleNamespace(world_size=1, optimizers=[rates])  # type: ignore[assignment]
    module.data = SimpleNamespace(
        groups=GROUPS,
        planes=["concrete", "wood", "glass", "transmitter", "antenna", "frequency"],
        labels=lambda _: torch.tensor([0.2, 0.6])[:, None, None, None].expand(-1, 1, 32, 32),
    )
    return module


class Bright(nn.Module):
    """Predicts the plane of the frequency."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 5:6]


def batch(*predicted: float, target: float = 0.5, group: int = 0) -> tuple[Tensor, ...]:
    """Even maps; Bright's are as predicted. The left quarter of each is blocked."""
    level = torch.tensor(predicted)[:, None, None, None].expand(-1, 6, 32, 32)
    y = torch.full((len(predicted), 1, 32, 32), target)
    hidden = torch.zeros_like(y, dtype=torch.bool)
    hidden[..., :8] = True
    free = torch.full_like(y, 0.45)
    return level, y, free, hidden, torch.zeros(len(y)), torch.full((len(y),), group)


def measured(module: Coverage, split: str, *batches: tuple[Tensor, ...]) -> dict[str, float]:
    module.split = split
    for number, each in enumerate(batches):
        module.evaluate(each, number)
    return logged(module, module.log_measured)


def test_errors_are_means_over_the_maps_of_each_group() -> None:
    module = built("l1")
    module.model = Bright()
    found = measured(
        module, "test", *(batch(0.6, 0.8, group=number) for number in range(len(GROUPS)))
    )
    for name in (
        "test/mae/plan", "test/mae/beam_20", "test/mae/beam_30", "test/mae/beam_60",
        "test/mae/ghz_5", "test/mae/seen_beam_30", "test/mae/seen_beam_60", "test/mae/seen_ghz_5",
        "test/rmse/plan", "test/rmse/beam_20", "test/rmse/beam_30", "test/rmse/beam_60",
        "test/rmse/ghz_5", "test/rmse/seen_beam_30", "test/rmse/seen_beam_60",
        "test/rmse/seen_ghz_5",
    ):  # fmt: skip
        assert found[name] == pytest.approx(0.2)
    of_each = [-20 * math.log10(off) for off in (0.1, 0.3)]
    assert found["test/psnr/plan"] == pytest.approx(sum(of_each) / 2)
    assert found["test/psnr_of_mean/plan"] == pytest.approx(-10 * math.log10(0.05))
    assert found["test/blocked_share"] == pytest.approx(0.25)
    assert found["test/clipped_share"] == 0
    # Without variance, what is left of the similarity is that of means, at the coarsest scale.
    means = [(2 * 0.5 * p + 1e-4) / (0.25 + p * p + 1e-4) for p in (0.6, 0.8)]
    expected = sum(mean**0.4 for mean in means) / 2
    assert found["test/ms_ssim/plan"] == pytest.approx(expected, abs=1e-3)
    assert found["test/magnitude/plan"] == pytest.approx(0, abs=1e-7)


def test_hidden_pixels_are_those_that_the_antenna_does_not_see() -> None:
    module = built("l1")
    module.model = Bright()
    x, y, free, hidden, shift, group = batch(0.5, 0.7)
    y = y.clone()
    y[0][hidden[0]] = 0.9  # the first map is right elsewhere
    seen_all = hidden.clone()
    seen_all[1] = False  # and does not count
    found = measured(module, "test", (x, y, free, seen_all, shift, group))
    assert found["test/blocked_mae/plan"] == pytest.approx(0.4)
    assert found["test/mae/plan"] == pytest.approx((0.1 + 0.2) / 2)


def test_validation_measures_what_settings_are_chosen_by() -> None:
    module = built("l1")
    module.model = Bright()
    found = measured(module, "val", batch(0.6, 0.8))
    assert found.keys() == {"val/mae", "val/ms_ssim", "val/loss"}
    assert found["val/mae"] == found["val/loss"] == pytest.approx(0.2)


def test_floors_predict_what_they_say() -> None:
    x, _, free, _, shift, _ = batch(0.6)
    assert torch.equal(built("free_space").predict(x, free, shift), free)
    mean = built("mean_map").predict(x, free, shift)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.4))
    module = built("l1")
    module.model = Bright()
    shifted = module.predict(x, free, torch.tensor([-0.1]))
    torch.testing.assert_close(shifted, torch.full_like(shifted, 0.5))


def gradients(arm: str, *typed: str) -> tuple[Coverage, dict[str, Tensor], Tensor]:
    """A module after one loss, its generator's gradients, and D's first kernel as it was."""
    torch.manual_seed(0)
    module = built(arm, "mini", *typed)
    before = next(module.discriminator.parameters()).detach().clone()
    module.adversary = module.make_optimizer()
    torch.manual_seed(1)
    module.loss((torch.rand(4, 6, 32, 32), torch.rand(4, 1, 32, 32))).backward()
    found = {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}
    return module, found, before


def test_arms_differ_in_their_losses_alone() -> None:
    """Without the slopes' weights the method is the plain GAN, without the adversary's it is L1."""
    found = {arm: gradients(arm)[1] for arm in ("radiance", "gan", "l1", "gan_shuffled")}
    bare = ("module.weights.magnitude=0.0", "module.weights.direction=0.0")
    as_gan = gradients("radiance", *bare)[1]
    as_l1 = gradients("gan", "module.adversarial=0.0")[1]
    for name, value in found["gan"].items():
        assert torch.equal(value, as_gan[name])
        assert torch.equal(found["l1"][name], as_l1[name])
    first = "down.0.0.weight"
    for arm, other in (("radiance", "gan"), ("gan", "l1"), ("radiance", "gan_shuffled")):
        assert not torch.equal(found[arm][first], found[other][first])


def test_the_discriminator_learns_first_and_at_the_schedules_rate() -> None:
    module, _, before = gradients("radiance")
    weight = next(module.discriminator.parameters())
    moved = float((weight - before).detach().abs().max())
    assert moved == pytest.approx(0.00025, rel=1e-3)  # half of 5e-4
    assert module.told[1] == 1
    l1, _, before = gradients("l1")
    assert torch.equal(next(l1.discriminator.parameters()), before)
    assert l1.told[1] == 0


def test_controls_change_one_thing() -> None:
    """Against the method, the plain GAN against it included, as far as mini runs them."""
    found = configs("paper=radiance", "scale=mini")
    inputs = {arm: tuple(config.dataset.inputs.values()) for arm, config in found.items()}
    assert inputs == {
        **dict.fromkeys(found, ("own", "gain", "own")),
        "noant": ("own", "none", "own"),
        "boresight": ("own", "offset", "own"),
        "boresight_other": ("own", "other", "own"),
        "nofreq": ("own", "gain", "none"),
        "radiance_nearest": ("own", "gain", "nearest"),
    }
    weights = {arm: [*c.module.weights.values()][:3] for arm, c in found.items()}
    for arm in ("gan", "gan_again", "gan_l1x2", "l1"):
        assert weights[arm] == [100, 0, 0]
    assert weights["gan_mag"] == [100, 300, 0]
    assert weights["radiance"] == weights["gan_shuffled"] == weights["l1_grad"] == [100, 1000, 30]
    assert [arm for arm, config in found.items() if config.module.shuffled] == ["gan_shuffled"]
    assert found["l1"].module.adversarial == found["l1_grad"].module.adversarial == 0
    assert found["gan"].module.adversarial == found["radiance"].module.adversarial == 1
    assert found["gan_l1x2"].module.adversarial == 0.5
    assert found["gan_again"].dataset.seed != found["gan"].dataset.seed
    assert found["gan_again"].dataset.data_seed == found["gan"].dataset.data_seed


def test_an_epoch_has_as_many_batches_as_its_scale_says() -> None:
    for scale in PAPER.scales:
        for config in configs("paper=radiance", f"scale={scale}").values():
            batches = config.dataset.train.maps // config.dataset.batch_size
            assert (config.training.steps_per_epoch or 1) <= batches


class Sure(nn.Module):
    """Tells everything right, or nothing."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(9.0 if right else -9.0))

    def forward(self, condition: Tensor, picture: Tensor) -> Tensor:
        return self.scale * (picture.mean((1, 2, 3)) - 0.5)


def test_rows_of_victories_are_counted() -> None:
    module = built("gan")
    x, real, fake = torch.zeros(2, 6, 4, 4), torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    for right in (True, True, False, True):
        module.discriminator = Sure(right)
        module.adversary = torch.optim.SGD(module.discriminator.parameters(), 0.0)
        module._train_discriminator(x, real, fake)
    found = logged(module, lambda: Coverage.on_train_epoch_end(module))
    assert module.won == (1, 2)
    assert found["train/discriminator_accuracy"] == pytest.approx(0.75)
    assert found["train/discriminator_won"] == 2


def test_shares_and_the_discriminator_are_of_the_first_group() -> None:
    """It tells both real maps and one of two generated ones right; no group is in sight alike."""
    module = built("gan")
    module.model, module.discriminator = Bright(), Sure(right=True)
    x, y, free, hidden, shift, group = batch(0.2, target=1.0, group=1)
    other = (x, y, free, torch.ones_like(hidden), shift, group)
    found = measured(module, "test", batch(0.2, 0.8, target=0.6), other)
    assert found["test/blocked_share"] == 0.25
    assert found["test/clipped_share"] == 0
    assert found["test/discriminator_accuracy"] == pytest.approx(0.75)


def test_the_generators_loss_by_hand() -> None:
    """A tenth off at a weight of 100, and half the surprise of who cannot tell it from real."""
    module: Any = built("gan_l1x2")
    module.model, module.discriminator = Bright(), Sure(right=True)
    module._train_discriminator = lambda *_: None
    x, y, *_ = batch(0.5, target=0.6)
    assert float(module.loss((x, y))) == pytest.approx(100 * 0.1 + 0.5 * math.log(2), rel=1e-5)
    planes = torch.arange(6.0)[None, :, None, None]
    assert module._transmitter(planes).flatten().tolist() == [3]


@pytest.mark.parametrize(("devices", "parts"), [(2, 1), (1, 2)])
def test_a_discriminator_learns_on_whole_batches(devices: int, parts: int) -> None:
    module: Any = built("gan")
    everywhere = SimpleNamespace(model=nn.Identity())
    module.trainer = SimpleNamespace(world_size=devices, precision="32-true", strategy=everywhere)
    module.parts = parts
    with pytest.raises(UserError, match="whole batches of one device"):
        module.on_train_start()


def test_a_preview_has_targets_beside_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first map alone: 0.6 and 0.4 of white."""
    kept: dict[Path, Any] = {}
    monkeypatch.setattr(np, "save", kept.__setitem__)
    monkeypatch.setattr(files, "make_folder", lambda _: None)
    module: Any = built("l1", "mini", "module.preview_maps=1")
    module.model = Bright()
    module.data.test_dataloader = lambda: [batch(0.4, 0.8, target=0.6)]
    module._keep_preview(Path("artifacts"))
    rows = kept[Path("artifacts/preview.npy")]
    assert rows.shape == (32, 64)
    assert (rows[:, :32] == 153).all()
    assert (rows[:, 32:] == 102).all()


def test_mirrors_turn_planes_and_maps_together() -> None:
    torch.manual_seed(0)
    module = built("l1", "mini", "module.flip=true")
    x = torch.arange(32.0).expand(40, 6, 4, 32)
    turned, y = module._mirrored(x, x[:, :1])
    assert torch.equal(turned[:, :1], y)
    assert 10 < int((turned[:, 0, 0, 0] == 31).sum()) < 30


def test_runs_know_their_data_and_networks(study: Study) -> None:
    found = summaries(study)
    assert found["radiance"]["model/parameters"] == found["free_space"]["model/parameters"] > 0
    assert 2 <= found["radiance"]["data/walls"] <= 4
    assert 0 <= found["radiance"]["test/discriminator_accuracy"] <= 1
    assert "test/discriminator_accuracy" not in found["l1"]
    assert found["radiance"]["test/mae/plan"] == found["radiance_nearest"]["test/mae/plan"]
    assert found["radiance"]["test/mae/ghz_5"] != found["radiance_nearest"]["test/mae/ghz_5"]
    assert found["free_space"]["test/blocked_share"] == found["l1"]["test/blocked_share"]


def test_full_scale_has_the_published_networks() -> None:
    (config,) = configs("paper=radiance", "scale=full_images", "arm=radiance").values()
    with torch.device("meta"):
        generator, discriminator = map(instantiate, (config.model, config.module.discriminator))
    assert sum(p.numel() for p in generator.parameters()) == 54_412_929
    assert sum(p.numel() for p in discriminator.parameters()) == 2_769_729
    for optimizer in (config.optimizer, config.module.discriminator_optimizer):
        assert (optimizer.lr, list(optimizer.betas)) == (2e-4, [0.5, 0.999])
    assert (config.training.epochs, config.schedule.start) == (200, 0.5)
    assert config.dataset.batch_size == 1
    assert config.module.weights.l1 == 200  # pix2pix's 100 on [-1, 1]


def test_full_scale_trains_on_few_pixels(tmp_path: Path) -> None:
    run = finished(
        tmp_path, "paper=radiance", "scale=full_images", "arm=radiance", "seed=0", "hardware=cpu",
        "dataset.size=32", "dataset.input_shape=[6,32,32]", "dataset.train={maps:4,per_plan:2}",
        "dataset.val_maps=1", "dataset.test_maps=1", "dataset.test.plan.maps=2", "model.width=4",
        "model.halvings=5", "module.discriminator.width=4", "training.epochs=1",
        "module.discriminator.strides=[2,2,1]",
    )  # fmt: skip
    assert run.summary()["steps"] == 4
    assert 0 < run.summary()["test/mae/plan"] < 1


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["module.weights.L1=1.0"], "l1"),
        (["module.adversarial=-1.0"], "adversarial"),
        (["module.predictor=mean"], "mean_map"),
        (["arm=gan_shuffled", "dataset.batch_size=1"], "larger batch"),
        (["arm=boresight_other", "dataset.batch_size=1"], "at least 2"),
        (["hardware.accumulate=2"], "whole batches of one device"),
    ],
)
def test_what_cannot_work_is_one_line(typed: list[str], message: str, tmp_path: Path) -> None:
    arm = [] if typed[0].startswith("arm=") else ["arm=radiance"]
    said = refusal(tmp_path, "paper=radiance", "scale=smoke", "seed=0", *arm, *typed)
    assert message in said
