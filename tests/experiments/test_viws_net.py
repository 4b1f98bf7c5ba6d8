"""What is special to ViWS-Net: what its numbers mean, what adversaries are for, whole frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from repro.experiments.viws_net import module as room
from repro.experiments.viws_net.module import Restoration
from rooms import configs, finished, refusal, summaries
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.viws_net import Restored
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("viws_net")
SMOKE = ["paper=viws_net", "scale=smoke"]


def built(*typed: str) -> Restoration:
    """A module, away from any trainer."""
    scale = [] if any(text.startswith("scale=") for text in typed) else ["scale=mini"]
    (config,) = configs("paper=viws_net", *scale, *typed).values()
    module = build_module(config)
    assert isinstance(module, Restoration)
    module.trainer = type("Trainer", (), {"current_epoch": 0, "world_size": 1, "global_step": 0})()
    return module


def logged(module: Any, split: str, *batches: tuple[Tensor, ...]) -> dict[str, float]:
    """What a module logs of an evaluation."""
    found: dict[str, float] = {}
    module.log, module.log_dict = found.__setitem__, found.update
    module.on_test_start() if split == "test" else module.on_validation_start()
    for number, batch in enumerate(batches):
        module.evaluate(batch, number)
    module.log_measured()
    return {name: torch.as_tensor(value).item() for name, value in found.items()}


def grey(*levels: int) -> Tensor:
    """Frames (N, 3, 16, 16) of one grey each."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 16, 16) / 255


def test_quality_is_that_of_8_bit_frames_by_weather() -> None:
    """Frames 10 and 20 levels off, and one that is right, by hand."""
    x = grey(110, 120, 100)[:, None].expand(-1, 3, -1, -1, -1)
    batch = (x, grey(100, 100, 100), torch.arange(3), torch.tensor([0, 1, 1]))
    found = logged(built("arm=input"), "test", batch)
    rain, haze = (20 * math.log10(255 / off) for off in (10, 20))
    assert found["test/psnr/rain"] == pytest.approx(rain, abs=1e-4)
    assert found["test/psnr/haze"] == pytest.approx(haze, abs=1e-4)
    assert found["test/psnr/snow"] == 100
    assert found["test/psnr"] == pytest.approx((rain + haze + 100) / 3, abs=1e-4)
    assert found["test/psnr/haze/photograph_1"] == found["test/psnr/haze"]
    # Luma: 16 + 219/255 of the grey, rounded: 102 for 100, 110 for 110, 119 for 120.
    assert found["test/psnr_y/rain"] == pytest.approx(20 * math.log10(255 / 8), abs=1e-4)
    assert found["test/psnr_y/haze"] == pytest.approx(20 * math.log10(255 / 17), abs=1e-4)
    assert found["test/psnr_y/snow"] == 100
    constant = (0.01 * 255) ** 2  # all that counts where nothing varies
    for name, level in (
        ("test/ssim_y/rain", 110),
        ("test/ssim_y/haze", 119),
        ("test/ssim_y/snow", 102),
    ):
        expected = (2 * 102 * level + constant) / (102**2 + level**2 + constant)
        assert found[name] == pytest.approx(expected, abs=1e-5)


def test_means_are_over_frames_and_then_over_weathers() -> None:
    """Two frames of rain count half each, however they came in batches."""
    x = grey(101, 110, 120, 100)[:, None].expand(-1, 3, -1, -1, -1)
    weather = torch.tensor([0, 0, 1, 2])
    clean = grey(100, 100, 100, 99)
    parts = [(x[:1], clean[:1], weather[:1]), (x[1:], clean[1:], weather[1:])]
    found = logged(built("arm=input"), "val", *parts)
    ones, ten = 20 * math.log10(255), 20 * math.log10(25.5)
    assert found["val/psnr/rain"] == pytest.approx((ones + ten) / 2, abs=1e-4)
    weathers = [found[f"val/psnr/{name}"] for name in ("rain", "haze", "snow")]
    assert found["val/psnr"] == pytest.approx(sum(weathers) / 3, abs=1e-4)
    assert not any("photograph" in name for name in found)


class Telling(nn.Module):
    """Pixels say nothing of the weather, messengers do: each clip's brightness is its weather."""

    def forward(self, x: Tensor) -> Restored:
        said = F.one_hot((2 * x[:, :, 0, 0, 0]).long(), 3).float()
        noise = torch.randn(2, *said.shape)
        return Restored(x[:, 1], noise[0], said + 0.1 * noise[1])


class Brightness:
    """Clips of one brightness for each weather."""

    def probe_dataloader(self, _split: str) -> Iterator[tuple[Tensor, ...]]:
        weather = torch.arange(30) % 3
        x = (weather / 2)[:, None, None, None, None].expand(-1, 3, 3, 4, 4)
        for _ in range(8):
            yield x, x[:, 1], weather


def test_probes_ask_pixels_and_messengers() -> None:
    torch.manual_seed(0)
    module = built("arm=viws")
    module.probe_items = 75
    module.model, module.data = Telling(), Brightness()
    found = module.probes()
    assert found["test/probe/tokens_accuracy"] == 1
    assert found["test/probe/pixels_accuracy"] < 0.6
    assert found["test/probe/pixels_mlp_accuracy"] < 0.75
    gap = found["test/probe/tokens_accuracy"] - found["test/probe/pixels_accuracy"]
    assert found["test/probe/gap"] == gap > 0
    assert len(module.features("train")["weather"]) == 75 * 3  # the last batch is cut


def encoder_gradient(adversary: Any, weight: float) -> tuple[float, Tensor]:
    """The loss of a batch, and its gradient for the encoder's first kernel."""
    torch.manual_seed(0)
    module = built("arm=viws").double()
    module.adversary, module.adversary_weight = adversary, weight
    clips = torch.rand(6, 3, 3, 16, 16).double()
    loss = module.loss((clips, clips[:, 1], torch.arange(6) % 3))
    loss.backward()
    network: Any = module.model
    return loss.item(), network.encoder.stages[0].embed.conv[0].weight.grad


def test_the_adversary_turns_the_sign_and_controls_do_not() -> None:
    """What the weather adds to the gradient, of the method and of its opposite, cancel."""
    without, plain = encoder_gradient("none", 0.1)
    loss, method = encoder_gradient("reversed", 0.1)
    same_loss, cooperative = encoder_gradient("cooperative", 0.1)
    assert same_loss == loss
    assert torch.allclose(method - plain, plain - cooperative)
    assert (method - plain).norm() > 0
    heavier_loss, heavier = encoder_gradient("reversed", 0.2)
    assert heavier_loss - without == pytest.approx(2 * (loss - without))
    # Untrained, it knows about nothing.
    assert loss - without == pytest.approx(0.1 * math.log(3), rel=0.1)
    assert torch.allclose(heavier - plain, 2 * (method - plain))
    _, shuffled = encoder_gradient("shuffled", 0.1)
    assert not torch.allclose(shuffled - plain, method - plain)
    asked = {arm: c.module.adversary for arm, c in configs("paper=viws_net", "scale=mini").items()}
    assert asked["no_adv"] == asked["single"] == asked["specialist"] == "none"
    assert (asked["viws"], asked["adv_shuffled"]) == ("reversed", "shuffled")


def test_the_strength_counts_steps_from_one() -> None:
    module = built("arm=viws")
    module.total_steps = 10
    assert module.strength() == pytest.approx(math.tanh(0.5))
    module.adversary = "cooperative"
    assert module.strength() == pytest.approx(-math.tanh(0.5))


def test_the_perceptual_loss_is_added_with_its_weight() -> None:
    """Here the mean absolute error: all is off by 1/2, and smooth L1 half the square of that."""
    module = built("arm=no_adv")
    module.model, module.perceptual, module.perceptual_weight = Telling(), nn.L1Loss(), 0.25
    clips = torch.rand(3, 3, 3, 16, 16)
    loss = module.loss((clips, clips[:, 1] + 0.5, torch.arange(3)))
    assert loss.item() == pytest.approx(0.5 * 0.5**2 + 0.25 * 0.5)


def test_losses_of_an_epoch_are_means_over_its_steps() -> None:
    module: Any = built("arm=viws")
    module.model = Telling()
    for loss in (1.0, 2.0, 6.0):
        module._add("restoration", torch.tensor(loss))
        module._add("adversary", torch.tensor(2 * loss))
    clips = torch.rand(3, 3, 3, 16, 16)
    batch = (clips, clips[:, 1], torch.arange(3))
    assert logged(module, "val", batch)["val/train_restoration"] == 3
    found: dict[str, Any] = {}
    module.log = lambda name, value, **_: found.update({name: float(value)})
    module.on_train_epoch_end()
    assert found["train/adversary"] == 6


def test_previews_show_every_centre_frame_and_keep_a_middle_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of six frames, each ten levels brighter than the one before, in windows of three."""
    shown: list[Any] = []
    kept: dict[Path, Any] = {}
    monkeypatch.setattr(room, "save_animation", lambda frames, *_, **__: shown.extend(frames))
    monkeypatch.setattr(np, "save", kept.__setitem__)
    videos = grey(0, 10, 20, 30, 40, 50)[None]
    room.save_preview(Telling(), (videos, 3), Path("artifacts"))
    assert [np.unique(frame).tolist() for frame in shown] == [[10], [20], [30], [40]]
    middle = kept[Path("artifacts/preview.npy")]
    assert middle.shape == (16, 2 * 16, 3)
    assert (middle == 30).all()


def test_a_specialist_sees_its_weather_alone() -> None:
    module = built("arm=specialist")
    clips, clean = torch.rand(6, 3, 3, 32, 32), torch.rand(6, 3, 32, 32)
    weather = torch.arange(6) % 3
    x, y, labels = module._of_trained_weathers((clips, clean, weather))
    assert torch.equal(x, clips[::3])
    assert torch.equal(y, clean[::3])
    assert labels.tolist() == [0, 0]


def test_the_training_loss_without_the_weather_chooses_where_nothing_validates() -> None:
    module = built("arm=viws")
    clips = torch.rand(3, 3, 3, 16, 16)
    for _ in range(2):
        module.loss((clips, clips[:, 1], torch.arange(3)))
    total, count = module.sums["restoration"]
    batch = (clips, clips[:, 1], torch.arange(3))
    assert logged(module, "val", batch)["val/train_restoration"] == pytest.approx(total / count)
    (config,) = configs("paper=viws_net", "scale=full", "arm=input").values()
    assert (config.training.monitor, config.training.mode) == ("val/train_restoration", "min")


def test_rivals_report_no_probes_and_restorers_show_previews(study: Study) -> None:
    found = summaries(study)
    assert not any("probe" in name for name in found["transweather_small"])
    assert found["median"]["model/parameters"] == found["median"]["steps"] == 0
    assert found["viws"]["model/parameters"] == found["specialist"]["model/parameters"] > 1e5
    assert found["viws"]["train/adversary"] > 0
    (run,) = (run for run in study.runs if run.record().arm == "viws")
    preview: Any = Image.open(run.folder / "artifacts/preview.gif")
    assert preview.n_frames == 2
    assert preview.size == (3 * 64, 3 * 96)


@pytest.mark.parametrize(
    ("arm", "parameters"),
    [("viws_scratch", 57_821_217 - 219), ("transweather", 38_052_078 - 296_667)],
)  # fmt: skip
def test_full_scale_has_the_published_networks(arm: str, parameters: int) -> None:
    with torch.device("meta"):
        module = built("scale=full", f"arm={arm}", "module.perceptual=null")
    assert sum(p.numel() for p in module.model.parameters()) == parameters


def test_full_scale_runs_on_the_published_folders(tmp_path: Path) -> None:
    """Whole frames of other sizes are tested, and the best epoch is that of the training loss."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(("RainMotion", "REVIDE", "KITTI_snow")):
        for part in ("Train", "Train_GT", "Test", "Test_GT"):
            folder = tmp_path / "weather_videos" / name / part / "clip"
            folder.mkdir(parents=True)
            for frame in range(6):
                picture = draw.integers(0, 256, (36 + 8 * number, 40, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{frame:05}.png")
    run = finished(
        tmp_path / "outputs", "paper=viws_net", "scale=full", "arm=viws_scratch", "seed=0",
        f"data.root={tmp_path}/hf", "model=viws_net/small", "module.perceptual=null",
        "dataset.input_shape=[5,3,32,32]", "dataset.batch_size=2", "dataset.workers=0",
        "dataset.val_items=1", "hardware=cpu", "training.epochs=2", "module.probe_items=2",
        "module.preview_frames=1",
    )  # fmt: skip
    found = run.summary()
    assert {"test/psnr_y/rain", "test/ssim_y/snow", "test/probe/gap"} <= found.keys()
    assert found["val/train_restoration"] > 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["module.adversary=reverse"], "reversed"),
        (["module.trained_on=[fog]"], "rain, haze or snow"),
        (["model.messengers=5"], "5 messengers"),
        (["dataset.scenes.train=[moon]"], "no scene 'moon'"),
    ],
)
def test_what_cannot_work_is_one_line(typed: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMOKE, "arm=viws", "seed=0", *typed)


def test_missing_files_of_full_scale_are_named(tmp_path: Path) -> None:
    typed = ["paper=viws_net", "scale=full", "arm=viws", "seed=0", "hardware=cpu"]
    typed.append(f"data.root={tmp_path}")
    assert "ckpt_S.pth" in refusal(tmp_path / "a", *typed, "module.perceptual=null", lines=3)
