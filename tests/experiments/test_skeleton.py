"""What is special to the skeletonisation: topology, allowed operations, vessels on disk."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.skeleton import benchmark
from repro.experiments.skeleton.benchmark import Benchmark, SoftInput
from rooms import configs, evaluated, finished, logged, plan, refusal, summaries
from torch import Tensor, nn

from repro.claims.outcomes import Verdict
from repro.claims.studies import judge_study
from repro.data.base.catalog import describe
from repro.methods.skeleton import Skeletonize
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training import watch
from repro.training.execute import build_module

PAPER = load_paper("skeleton")
FEW = "dataset.train_size=16 dataset.val_size=4 dataset.test_size=4"  # pictures


@pytest.mark.parametrize("scale", [scale for scale in PAPER.scales if scale != "smoke"])
def test_no_arm_equals_another(scale: str) -> None:
    assert not plan("paper=skeleton", f"scale={scale}").notes


def test_claims_about_identities_hold_at_smoke(study: Study) -> None:
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert verdicts["C1"] is verdicts["C5"] is Verdict.SUPPORTED


def test_the_benchmark_finds_what_is_known(study: Study) -> None:
    found = summaries(study)
    boolean, euler, lee = (found[arm] for arm in ("boolean", "euler", "lee"))
    assert boolean["test/betti_error"] == lee["test/betti_error"] == 0
    assert boolean["test/usable_gradient"] == 1
    assert lee["test/usable_gradient"] == 0
    assert euler["test/2d/betti_error"] == 0 < euler["test/3d/betti_error"]  # the hollow shell
    assert boolean["test/3d/thick"] == 0
    assert "test/3d/betti_error" not in found["learned"]  # a network for images
    assert boolean["test/soft/beta_0.33/dice_1"] > 0.5


class ByHand(Skeletonize):
    """Skeletons that a test knows: a shape's corner says what is wrong with its skeleton.

    Its operations, an exponential and a cosine, are none that the paper allows itself.
    """

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if generator is not None:
            return self.drawn(x)
        fault = int(x.flatten()[0] > 0) + 2 * int(x.flatten()[1] > 0)
        same = x + 0 * x.exp().cos()
        return (same, 0 * same, same.detach(), same * math.inf)[fault]

    def drawn(self, x: Tensor) -> Tensor:
        """Of the four points of a line: at beta 0.33 so many of 20 draws, and else of none."""
        many = torch.zeros_like(x)
        if self.beta == 0.33:
            for column, draws in enumerate([[1, 2, 4], [2, 3, 4], [0, 1], [1]]):
                many[draws, 0, 2, 1 + column] = 1
            many[5:16, 0, 2, 1:4] = 1  # so that three of them are in 11 draws of 20, or more
        return many


def shape(*size: int, fault: int = 0) -> Tensor:
    """A line of four points inside, and in the first two points which fault `ByHand` has."""
    mask = torch.zeros(1, 1, *size)
    middle = mask[0, 0, 2] if len(size) == 2 else mask[0, 0, 2, 2]
    middle[1:5] = 1
    mask.view(-1)[:2] = torch.tensor([float(fault & 1), float(fault >> 1)])
    return mask


def test_the_benchmark_on_skeletons_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images and five volumes: the second and the third are left with empty skeletons."""
    faults = (0, 1, 0, 0, 1, 2, 3)
    masks = [shape(*(6,) * (2 if n < 2 else 3), fault=k) for n, k in enumerate(faults)]
    found: Any = Benchmark(nn.Identity(), ByHand(), SoftInput(["0"]))
    found.trainer = SimpleNamespace(should_stop=False)
    found.names = list(map(str, range(7)))
    monkeypatch.setattr(found, "tick", lambda: None)
    seconds = iter([s for k in range(7) for s in (0, 0.9, 0, (k + 1) / 1000)])
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    for number, mask in enumerate(masks):
        found.training_step((mask, torch.tensor(number)), number)
    logs = logged(found, found.on_test_epoch_end)
    # Two pieces are lost each time: the line, and the corner that says so.
    assert logs["test/wrong"] == pytest.approx(2 / 7)
    assert logs["test/betti_error"] == pytest.approx(2 * 2 / 7)
    assert logs["test/3d/wrong"] == pytest.approx(1 / 5)
    # Of the volumes' gradients two are 1, one 0, one is not there and one is infinite.
    assert logs["test/3d/usable_gradient"] == pytest.approx(2 / 5)
    assert logs["test/usable_gradient"] == pytest.approx(3 / 7)
    # The faster of two passes: 1 and 2 ms, and 3 to 7.
    assert logs["time/2d_ms"] == pytest.approx(1.5)
    assert logs["time/3d_ms"] == pytest.approx(5)
    assert logs["test/foreign_operations"] == 2
    # The first draw has one point of four, most of five have two, most of twenty three.
    assert logs["test/soft/beta_0.33/dice_1"] == pytest.approx(2 * 1 / (1 + 4))
    assert logs["test/soft/beta_0.33/dice_5"] == pytest.approx(2 * 2 / (2 + 4))
    assert logs["test/soft/beta_0.33/dice_20"] == pytest.approx(2 * 3 / (3 + 4))
    assert logs["test/soft/beta_1/dice_20"] == 0


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.9, 0.8, 1.0), (0.5, 0.5, 0.6)])
def test_soft_masks_lie_around_their_confidence(
    confidence: float, least: float, most: float
) -> None:
    """On the right side of 1/2; of the skeletons of this one nothing is left, a piece too few."""
    drawn_from: list[Tensor] = []

    class Lost(ByHand):
        def drawn(self, x: Tensor) -> Tensor:
            drawn_from.append(x)
            return torch.zeros_like(x)

    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    settings = SoftInput([], confidence, noise=0.1)
    row = Benchmark(nn.Identity(), Lost(), settings)._skeletons_of_soft(mask, 0, settings)
    assert row["beta_1/betti_error_5"] == 1
    soft = drawn_from[0][:1]
    for right in (soft[mask == 1], 1 - soft[mask == 0]):
        assert least - 1e-6 <= float(right.min()) < least + 0.01
        assert most - 0.01 < float(right.max()) <= most + 1e-6


def built(arm: str) -> Any:
    """A module, away from any trainer."""
    return build_module(configs("paper=skeleton", "scale=smoke", f"arm={arm}")[arm])


def test_overlaps_of_known_masks() -> None:
    """Of a square of 16 points half is found, and all; of half a picture, 32 points, nothing."""
    found = built("seg_dice")
    found.model = found.judge = nn.Identity()  # each mask is its own centreline
    masks = torch.zeros(3, 1, 8, 8)
    masks[:2, ..., 2:6, 2:6] = 1
    masks[2, ..., :4] = 1
    logits = 2 * masks - 1
    logits[0, ..., :4] = logits[2] = -1
    logs = evaluated(found, [(logits, masks)])
    dice, cldice = (17 / 25 + 1 + 1 / 33) / 3, (9 / 13 + 1 + 1 / 17) / 3
    assert logs["test/dice"] == pytest.approx(dice)
    assert logs["test/cldice"] == pytest.approx(cldice)
    assert logs["test/score"] == pytest.approx((dice + cldice) / 2)
    assert logs["test/loss"] == pytest.approx(1 - (dice + cldice) / 2)
    assert logs["test/betti_0_error"] == pytest.approx(1 / 3)


class Says(nn.Module):
    """The same, whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


def test_learnt_skeletons_are_compared_with_the_teachers() -> None:
    """Two columns of a mask of four; the network draws one of them, and beside the mask."""
    found = built("learned_net")
    found.flips = False
    target, masks, logits = (torch.zeros(1, 1, 8, 8) for _ in range(3))
    masks[..., :4], target[..., 2:4] = 1, 1
    found.teacher, found.model = Says(target), Says(logits)
    # Of even chances: cross-entropies of log 2, and 2 · 8 + 1 over 32 + 16 + 1.
    assert float(found.loss((masks, masks))) == pytest.approx(math.log(2) + 1 - 17 / 49)
    logits += torch.tensor([-1.0] * 3 + [1.0] * 5)
    logs = evaluated(found, [(masks, masks)])
    assert logs["test/dice"] == pytest.approx(17 / 25)
    assert logs["test/loss"] == pytest.approx(8 / 25)
    assert logs["test/betti_error"] == 0


def test_landmarks_and_overlaps_of_known_maps() -> None:
    """A pair of each kind, on 8 x 8 points, four in a unit of the coordinates.

    A quarter turn and a shift by a point take (1/2, 1/4) to (0, 1/2), and a square of 4 x 4 points
    to one that has 12 points in common with it. The other map changes nothing, and is right.
    """
    found = built("reg_dice")
    square = torch.zeros(1, 1, 8, 8)
    square[..., 2:6, 2:6] = 1
    place = torch.tensor([[[0.5, 0.25]]])
    off = (square, square, place, torch.tensor([[[0.75, 0.5]]]))
    right = (square, square, place, place)
    both = tuple(torch.cat(parts) for parts in zip(off, right, strict=True))
    found.data = SimpleNamespace(splits={"val": off, "test": both})
    found.setup("fit")
    found.maps.data[1] = torch.tensor([[0.0, -1.0, 0.25], [1.0, 0.0, 0.0]])
    start = math.hypot(0.25, 0.25) * 4
    found.requires_grad_(False)
    logs = evaluated(found, [])
    assert logs["test/landmark_error"] == pytest.approx(3 / 2)
    assert logs["test/start_error"] == pytest.approx(start / 2)
    assert logs["test/dice"] == pytest.approx((25 / 33 + 1) / 2)
    found.on_validation_start()
    logs = logged(found, found.log_measured)
    assert logs["val/landmark_error"] == logs["val/start_error"] == pytest.approx(start)
    assert logs["val/dice"] == 1


def test_a_step_takes_its_share_of_the_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of 1, 2, 3 and 4 seconds, with pauses of ten between them."""
    clock = iter([0.0, 1.0, 11.0, 13.0, 23.0, 26.0, 36.0, 40.0])
    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    watching = watch.Watch(1, lambda *_: None, report_every=math.inf)
    absent: Any = None
    for _ in range(4):
        watching.on_train_batch_start()
        watching.on_train_batch_end(absent, absent, None)
    assert watching.times()["time/step_ms"] == pytest.approx(2500)


def test_applications_report_what_they_are_judged_by(study: Study) -> None:
    segmentation, registration = (summaries(study)[arm] for arm in ("seg_dice", "reg_dice"))
    assert {"test/cldice", "test/betti_0_error", "val/score"} <= segmentation.keys()
    assert registration["test/landmark_error"] < registration["test/start_error"]


@pytest.mark.parametrize("typed", ["arm=seg_skeleton", "arm=reg_skeleton"])
def test_a_killed_application_ends_with_the_same_bits(tmp_path: Path, typed: str) -> None:
    """The methods' own arms; test_rooms.py kills the baselines."""
    base = ["paper=skeleton", "scale=smoke", "seed=1", "training.epochs=3"]
    same_after_a_kill(tmp_path, 5, *base, *typed.split())


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=boolean method=gradient_noise", "paper=skeleton takes method=skeleton"),
        ("arm=boolean dataset=digits", "dataset=shapes"),
        (f"arm=seg_skeleton method=skeleton/classical {FEW}", "passes no gradient"),
        ("arm=reg_skeleton share=1.5", "share=1.5"),
        (f"arm=reg_skeleton dataset=vessels {FEW}", "dataset=arches"),
        ("arm=zhang dataset.pictures=false dataset.trees=0", "none of the shapes"),
        ("arm=learned_net method=none", "takes a teacher"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    refused = refusal(tmp_path, "paper=skeleton", "scale=mini", "seed=0", *typed.split())
    assert complaint in refused


def test_it_is_no_training_method(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "method=skeleton", "seed=0"]
    assert "a skeleton is a layer" in refusal(tmp_path, *typed)


@pytest.mark.parametrize(("scale", "name"), [("full", "DRIVE"), ("full_vessap", "VesSAP")])
def test_missing_data_are_one_clear_line(tmp_path: Path, scale: str, name: str) -> None:
    typed = [f"scale={scale}", "arm=boolean", "seed=0", "hardware=cpu"]
    refused = refusal(tmp_path, "paper=skeleton", *typed, f"data.root={tmp_path}/hf", lines=3)
    assert f"{name} is missing" in refused
    assert {e.name for e in describe(tmp_path / "hf") if not e.present} >= {"drive", "vessap"}


def write_drive(folder: Path) -> None:
    """A tiny copy of DRIVE's layout, of 40 × 35 points."""
    from PIL import Image

    for part, first in (("training", 21), ("test", 1)):
        for sub in ("images", "1st_manual"):
            (folder / part / sub).mkdir(parents=True)
        for number in range(first, first + 3):
            mask = torch.zeros(40, 35, dtype=torch.uint8)
            mask[10:14, 4:30] = mask[4:36, 15:18] = 255
            picture = Image.fromarray(mask.numpy())
            picture.convert("RGB").save(folder / part / "images" / f"{number:02}_{part}.tif")
            picture.save(folder / part / "1st_manual" / f"{number:02}_manual1.gif")


def test_full_runs_on_files_laid_out_like_drive(tmp_path: Path) -> None:
    write_drive(tmp_path / "drive")
    own = ["paper=skeleton", "scale=full", f"data.root={tmp_path}/hf", "hardware=cpu", "seed=0"]
    own += ["training.val_every=1", "dataset.val_size=1"]
    masks = finished(tmp_path, *own, "arm=boolean")
    assert masks.summary()["test/betti_error"] == 0
    small = ["model.width=4", "model.depth=2", "training.epochs=1"]
    small += ["dataset.input_shape=[3,40,35]", "dataset.batch_size=2"]
    network = finished(tmp_path, *own, "arm=drive_skeleton", *small)
    assert 0 <= network.summary()["test/cldice"] <= 1
