"""What is special to this paper's room: what its numbers mean."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from published import write_images
from repro.experiments.rmt_lr import sweeps
from repro.experiments.rmt_lr.base import best_of, exponent, grid, largest_below
from repro.experiments.rmt_lr.spectra import Spectra, Spiked
from repro.experiments.rmt_lr.sweeps import Damping, Learner, Scaling
from rooms import configs, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.data.tables.bundled import digits
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module
from repro.training.supervised import Supervised

PAPER = load_paper("rmt_lr")
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def module(arm: str, *typed: str, scale: str = "mini") -> Any:
    """An arm's module, as at a scale."""
    return build_module(configs("paper=rmt_lr", f"scale={scale}", f"arm={arm}", *typed)[arm])


def test_rates_from_losses() -> None:
    grid_K = grid(0.1, 3.0, 5)
    losses_K = torch.tensor([0.9, 0.5, 0.7, 1.5, torch.inf])
    assert best_of(grid_K, losses_K) == pytest.approx(0.3)
    assert largest_below(grid_K, losses_K, 1.0) == pytest.approx(0.9)
    for falling in (False, True):  # better ones may lie below, or above
        assert math.isnan(best_of(grid_K, losses_K.sort(descending=falling).values))
    for level in (0.1, torch.inf):  # none is stable, or larger ones may be
        assert math.isnan(largest_below(grid_K, losses_K, level))
    assert exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert math.isnan(exponent([1, 2], [1, math.nan]))


def a_study(rate_of: Any, threshold: float = 10.0, **more: Any) -> dict[str, float]:
    """The summary of a sweep whose losses are least at a given rate of each batch size."""
    scaling: Scaling = module("sgd", f"scaling.sizes={SIZES}", "scaling.carried_to=[]")
    log_K = scaling.rates_K.log()
    scaling.found = {"start": 2.3, "threshold/middle": threshold, **more}
    for size in SIZES:
        beyond_K = log_K - math.log(rate_of(size))
        losses_K = 0.1 + torch.where(beyond_K > 0, 4 * beyond_K.square(), -0.1 * beyond_K)
        scaling.found[f"steps/{size}"] = losses_K.tolist()
    return dict(scaling.summary())


def test_slopes_of_a_rate_that_is_linear_and_then_flat() -> None:
    found = a_study(lambda size: 0.1 * min(size, 32))
    assert found["test/slope/best/linear"] == pytest.approx(1, abs=0.02)
    assert found["test/slope/best/low"] == pytest.approx(1, abs=0.02)
    assert found["test/slope/best/plateau"] == pytest.approx(0, abs=1e-9)
    assert found["test/slope/best/high"] == pytest.approx(0, abs=1e-9)
    assert found["test/slope/stable/linear"] == pytest.approx(1, abs=0.1)
    assert found["test/rate/best/b8"] == pytest.approx(0.8, rel=0.1)
    assert found["test/censored"] == 0
    assert a_study(lambda size: 0.1 * size**0.5)["test/slope/best/high"] == pytest.approx(
        0.5, abs=0.03
    )
    assert a_study(lambda size: 1e-9)["test/censored"] > 0


def test_excess_is_that_of_each_rule_over_the_best_of_the_grid() -> None:
    """Two sizes besides that of the tuning; lost runs count as the start, 2 nats."""
    typed = ["scaling.sizes=[4,32,64]", "scaling.carried_to=[4,64]", "scaling.rates.count=3"]
    scaling: Scaling = module("sgd", *typed)
    scaling.found = {"start": 2.0, "threshold/middle": 10.0, "steps/32": [0.5, 0.2, 9.0]}
    grids = [0.5, 0.2, 9.0], [0.1, 0.6, 9.0]
    for size, grid_K in zip((4, 64), grids, strict=True):  # in the order of RULES
        scaling.found[f"epochs/{size}"] = [*grid_K, 0.3, 0.4, 9.0, 0.2]
        scaling.found[f"steps/{size}"] = [*grid_K, 1.2, 0.9, 0.6, 0.5]
    found = logged(scaling, scaling.on_test_epoch_end)
    # Above 0.2 and above 0.1: a mean of 0.15.
    assert found["test/excess/epochs/constant"] == pytest.approx(0.3 - 0.15)
    assert found["test/excess/epochs/root"] == pytest.approx(0.4 - 0.15)
    assert found["test/excess/epochs/linear"] == pytest.approx(2.0 - 0.15)
    assert found["test/excess/epochs/rmt"] == pytest.approx(0.2 - 0.15)
    assert found["test/excess/steps/constant"] == pytest.approx(1.2 - 0.15)
    assert found["test/excess/steps/root"] == pytest.approx(0.9 - 0.15)
    assert found["test/excess/steps/linear"] == pytest.approx(0.6 - 0.15)
    assert found["test/excess/steps/rmt"] == pytest.approx(0.5 - 0.15)


def test_rates_are_carried_from_the_best_for_equal_steps_and_for_equal_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second of three rates is the best at 32; without end of examples, and with B* = 32."""
    typed = ["scaling.sizes=[8,32,128]", "scaling.carried_to=[8,32,128]", "scaling.steps=100",
        "scaling.rates={base:0.1,ratio:2.0,count:3}"]  # fmt: skip
    scaling: Scaling = with_data(module("sgd", *typed))
    scaling.examples = 10**12
    trained: dict[tuple[int, int], list[float]] = {}

    def train(rates_M: Tensor, size: int, steps: int) -> Tensor:
        trained[size, steps] = rates_M.tolist()
        return torch.tensor([0.9, 0.2, 9.0, 0.1, 0.1, 0.1, 0.1])[: len(rates_M)]

    monkeypatch.setattr(scaling, "_train", train)
    monkeypatch.setattr(scaling, "_thresholds", lambda rate: {"best": rate, "threshold/middle": 32})
    for part in scaling.parts():
        scaling.found |= scaling.work(part)
    assert scaling.found["best"] == pytest.approx(0.2)
    assert list(trained) == [(32, 100), (8, 100), (8, 400), (128, 100), (128, 25)]
    of_rules = {8: [0.2, 0.1, 0.05, 0.2 * 2 / 5], 128: [0.2, 0.4, 0.8, 0.2 * 2 / 1.25]}
    for (size, _), rates in trained.items():
        assert rates == pytest.approx([0.1, 0.2, 0.4, *of_rules.get(size, [])])


class Bowl:
    """Copies of one weight, at first 1, with the loss θ²/2; a plain step adds 1 to it."""

    def __init__(self, _model: Any, each_M: Tensor, *_: Any) -> None:
        self.theta_MP = nn.Parameter(torch.ones(len(each_M), 1))

    def gradients(self, _batch: Any) -> tuple[None, Tensor]:
        return None, self.theta_MP.detach().clone()

    def step(self, _batch: Any) -> None:
        self.theta_MP.data += 1

    def evaluate(self, _data: Any) -> Tensor:
        return self.theta_MP.detach()[:, 0].square() / 2


def test_noise_is_measured_before_the_middle_and_last_of_all_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling: Scaling = with_data(module("sgd", "scaling.steps=6"))
    monkeypatch.setattr(sweeps, "Ensemble", Bowl)
    monkeypatch.setattr(sweeps, "noise_of", lambda _m, _d, theta_P, *_: (2.0, 4 * float(theta_P)))
    found = scaling._thresholds(0.1)
    assert [found[f"top/{name}"] for name in ("start", "middle", "end")] == [2, 2, 2]
    assert [found[f"threshold/{name}"] for name in ("start", "middle", "end")] == [1, 4, 7]


def test_the_least_stable_damping_of_a_bowl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 8/(1 + δ) are stable from δ = 3: of a half, 1, 2, 4 and 8 the fourth."""
    typed = ["damping.dampings={base:0.5,ratio:2.0,count:5}", "damping.steps=4"]
    damping: Damping = with_data(module("damping", *typed))
    known = SimpleNamespace(values=torch.ones(5, 1), vectors=lambda _k: torch.ones(5, 1, 1))
    monkeypatch.setattr(damping, "_curvature", lambda *_: known)
    monkeypatch.setattr(sweeps, "Ensemble", Bowl)
    monkeypatch.setattr(sweeps, "noise_of", lambda *_: (2.0, 1280.0))
    found = damping.work((8.0, 256))
    assert found["damping/a8_b256"] == pytest.approx(4)
    assert found["damping_predicted/a8_b256"] == pytest.approx(4 * (2 + 1280 / (320 * 2)) - 2)
    assert found["threshold/start"] == 1280 / 2**2


def test_dampings_and_their_exponents() -> None:
    damping: Damping = module("damping")
    for rate, size in damping.parts():
        damping.found[f"damping/a{rate:g}_b{size}"] = 3 * rate / size
        damping.found[f"damping_predicted/a{rate:g}_b{size}"] = 2.0
    found = damping.summary()
    assert found["test/exponent/rate"] == pytest.approx(1)
    assert found["test/exponent/batch"] == pytest.approx(-1)
    assert found["test/exponent_predicted/rate"] == pytest.approx(0)


def test_the_error_of_the_formula() -> None:
    spiked: Spiked = module("spiked", "spiked.spikes=[1.0,2.0]", "spiked.scales=[1.0]")
    spiked.found = {"x1_s1": 2.0, "x2_s1": 2.4}
    assert spiked.summary()["test/error/worst"] == pytest.approx(0.1)
    assert spiked.summary()["test/error/unshifted"] == pytest.approx(0.4)


@pytest.mark.parametrize(("spike", "top"), [(0.0, 2.0), (2.0, 2.5), (4.0, 4.25)])
def test_a_spike_shows_from_the_radius_of_the_semicircle_on(spike: float, top: float) -> None:
    """In units of s, as Baik, Ben Arous and Péché have it."""
    typed = ["spiked.dimension=400", f"spiked.spikes=[{spike}]", "spiked.scales=[0.5]"]
    spiked: Spiked = module("spiked", *typed)
    assert list(spiked.work((spike, 0.5)).values()) == pytest.approx([top], rel=0.05)


def with_data(part: Any) -> Any:
    """A module with the digits, outside of a run."""
    part.data = digits(task="classification")
    part.model.to("cpu")
    return part


def test_a_learner_is_judged_from_the_best_of_the_grid_to_its_median() -> None:
    typed = ["learner.sizes=[128]", "learner.epochs=1", "learner.rates.count=4", "examples=256"]
    learner: Learner = with_data(module("learner", *typed))
    found = learner.work(128)
    best, median = found["grid/best/b128"], found["grid/median/b128"]
    assert best < median
    assert found["grid/runs"] == 12
    assert found["learner/gradients/b128"] == 2 + 2 * 10
    assert found["line_search/gradients/b128"] == 2 + 2 * 1
    loss, _ = learner._descend(learner.rivals["learner"], 128, 2)
    expected = (min(loss, 2.5) - best) / (median - best)
    assert found["learner/excess/b128"] == pytest.approx(expected, abs=0.2)
    assert found["random/excess/b128"] > 0.3


class LostOrFound:
    """An ensemble that ends with given losses, whatever it is fed; counts its steps."""

    losses: tuple[float, ...] = (0.5, 1.0, 1.5, math.inf)
    steps = 0

    def __init__(self, *_: Any) -> None: ...

    def step(self, _batch: Any) -> None:
        LostOrFound.steps += 1

    def evaluate(self, _data: Any) -> Tensor:
        return torch.tensor(self.losses)


def test_an_excess_is_0_at_the_best_of_the_grid_and_1_at_its_median(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A grid of 0.5, 1, 1.5 and the start's 2: median 1 (the lower one), mean 1.25."""
    typed = ["learner.sizes=[16,64,256]", "learner.epochs=1", "learner.momenta=[0.0]"]
    room: Learner = with_data(module("learner", *typed, "examples=256"))
    ends = {"learner": (0.75, 3), "line_search": (math.nan, 0), "inverse": (0.25, 0)}

    def descend(rival: Any, _size: int, _steps: int) -> tuple[float, Any]:
        name = next(name for name, each in room.rivals.items() if each is rival)
        return ends[name][0], SimpleNamespace(rate=0.1, momentum=0.0, products=ends[name][1])

    monkeypatch.setattr(room, "_descend", descend)
    monkeypatch.setattr(sweeps, "Ensemble", LostOrFound)
    monkeypatch.setattr(sweeps, "loss_of", lambda *_: 2.0)
    for size in (16, 64, 256):
        monkeypatch.setattr(LostOrFound, "steps", 0)
        room.found |= room.work(size)
        assert LostOrFound.steps == 256 // size + 2 * 3  # a product is two gradients
    found = logged(room, room.on_test_epoch_end)
    for b in ("b16", "b64", "b256"):
        assert found[f"test/learner/excess/{b}"] == pytest.approx(0.5)
        assert found[f"test/line_search/excess/{b}"] == pytest.approx(3.0)
        assert found[f"test/inverse/excess/{b}"] == pytest.approx(-0.5)
        assert found[f"test/random/excess/{b}"] == pytest.approx(1.5)


SOME_SIZES = [16, 32, 64, 128]
SOME_BATCHES = 7


class Square(nn.Module):
    """(w·x)², for which neither curvature is that of a linear model, and both can be written."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).square()


def explicit(kind: str, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Curvature of the mean of ((w·x)² - y)²: 8 (w·x)² x xᵀ, and 4 ((w·x)² - y) x xᵀ with it."""
    along_N = (x @ w).square()
    factor_N = 8 * along_N + (4 * (along_N - y) if kind == "hessian" else 0)
    return torch.einsum("n,ni,nj->ij", factor_N, x, x) / len(x)


def test_spectra_are_those_of_explicit_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prediction and each slope by its formula from dense matrices of the same batches."""
    monkeypatch.setattr(Supervised, "on_test_epoch_end", lambda _: None)
    room: Spectra = module("spectra", "spectra.probes=2", "spectra.projected=1")
    room.epochs, room.kinds, room.sizes = [0, 3, 30, 150, 300], ["hessian", "ggn"], SOME_SIZES
    room.examples, room.batches = 256, SOME_BATCHES  # whose first orders do not cancel
    room.model, room.task, room.lanczos_steps = Square(), "regression", 3
    x = torch.randn(256, 3, generator=generator_for(0)).double()
    y = torch.randn(256, generator=generator_for(1)).double()
    room.data = SimpleNamespace(splits={"train": (x, y)}, normalise=None)
    for epoch in room.epochs:
        room._measure(epoch)
    found = logged(room, room.on_test_epoch_end)
    w = room.model.w.detach()
    for epoch in (0, 3, 30, 150, 300):
        draws = generator_for(room.seed, epoch)
        torch.randn(3, generator=draws)
        z_KP = torch.nn.functional.normalize(torch.randn(2, 3, generator=draws)).double()
        order = torch.randperm(256, generator=draws)
        for kind in ("hessian", "ggn"):
            H = explicit(kind, w, x, y)
            values, vectors = torch.linalg.eigh(H)
            top, v = values[-1], vectors[:, -1]
            logs: list[list[float]] = []
            for size in SOME_SIZES:
                parts = zip(x[order].split(size), y[order].split(size), strict=True)
                H_M = torch.stack([explicit(kind, w, *part) for part in parts][:SOME_BATCHES])
                e_M, b = H_M - H, 1 / (1 / size - 1 / 256)
                first = (e_M @ v @ v).mean()
                shift = torch.linalg.eigvalsh(H_M)[:, -1].mean() - top - first
                across = (e_M @ v).square().sum(1).mean() - (e_M @ v @ v).square().mean()
                alike = (z_KP @ e_M).square().sum(2).mean()
                s = float(alike.sqrt())
                moved = s**2 / top if top > s else 2 * s - top
                assert found[f"test/{kind}/ratio/e{epoch}/b{size}"] == pytest.approx(
                    float(across / top / shift)
                )
                assert found[f"test/{kind}/ratio_isotropic/e{epoch}/b{size}"] == pytest.approx(
                    float(moved / shift)
                )
                # By one vector alone there is the first-order term, and no shift.
                assert found[f"test/{kind}/ratio_projected/e{epoch}/b{size}"] == pytest.approx(
                    0, abs=1e-6
                )
                low = values[0] - torch.linalg.eigvalsh(H_M)[:, 0].mean()
                logs.append([math.log(each) for each in (1 / b, shift, low)])
            inverse, shifts, lows = np.array(logs).T
            for edge, moves in (("slope", shifts), ("slope_bottom", lows)):
                slope = np.cov(inverse, moves)[0, 1] / inverse.var(ddof=1)
                assert found[f"test/{kind}/{edge}/e{epoch}"] == pytest.approx(slope)


def test_spectra_are_measured_before_the_first_step_and_after_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for hook in ("on_train_start", "on_train_epoch_end"):
        monkeypatch.setattr(Supervised, hook, lambda _: None)
    room: Spectra = module("spectra")
    measured: list[int] = []
    monkeypatch.setattr(room, "_measure", measured.append)
    for step, epoch in ((0, 0), (40, 2)):  # from the start, and taken up again
        room.trainer = SimpleNamespace(global_step=step, current_epoch=epoch)  # type: ignore[assignment]
        logged(room, room.on_train_start, room.on_train_epoch_end)
    assert measured == [0, 1, 3]


def test_spectra_of_a_known_fluctuation() -> None:
    spectra: Spectra = with_data(module("spectra", "spectra.sizes=[16,64]", "spectra.probes=2"))
    found = spectra._spectrum("hessian", 0)
    assert found["top/e0/b16"] > found["top/e0/b64"] > found["top/e0"]
    assert found["bottom/e0/b16"] < found["bottom/e0/b64"] < found["bottom/e0"]
    assert found["shift/e0/b16"] == pytest.approx(found["top/e0/b16"] - found["top/e0"], abs=1e-3)
    assert 0.5 < found["slope/e0"] < 1.5
    assert found["slope_without/e0"] > found["slope/e0"] > 0
    predicted = found["noise/e0/b16"] / (1 / (1 / 16 - 1 / 1280)) / found["top/e0"]
    assert found["ratio/e0/b16"] == pytest.approx(predicted / found["shift/e0/b16"])
    assert found["ratio_isotropic/e0/b16"] < 0.2 * found["ratio/e0/b16"]
    assert 0 < found["ratio_projected/e0/b16"] < 1
    mean = (found["noise/e0/b16"] + found["noise/e0/b64"]) / 2
    assert found["threshold/e0"] == pytest.approx(mean / found["top/e0"] ** 2)


def test_shuffled_labels_are_the_same_labels(study: Study) -> None:
    found = summaries(study)
    assert found["spectra_shuffled"]["test/accuracy"] < 0.4
    spectra: Spectra = with_data(module("spectra_shuffled"))
    before = spectra.data.splits["train"][1].clone()
    spectra.setup("fit")
    after = spectra.data.splits["train"][1]
    assert not torch.equal(before, after)
    assert torch.equal(before.sort().values, after.sort().values)


@pytest.mark.parametrize(
    ("arm", "parameters"),
    [
        ("vgg16", 15_291_300),
        ("vgg16_bn", 15_299_748),
        ("preresnet110", 1_169_972),
        ("wrn28_10", 36_536_884),  # 36.5M in its paper
    ],
)
def test_full_has_the_papers_networks(arm: str, parameters: int) -> None:
    with torch.device("meta"):
        full = module(arm, scale="full")
    assert sum(each.numel() for each in full.model.parameters()) == parameters
    assert full.lanczos_steps == 100


TINY = ["dataset.classes=10", "dataset.val_size=8", "dataset.batch_size=8",
    "dataset.eval_batch_size=8", "training={epochs:1,max_steps:2,val_every:1}",
    "hardware=cpu"]  # fmt: skip


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    """Images in the layout of CIFAR-100, of ten of its classes."""
    folder = tmp_path / "hf" / "uoft-cs" / "cifar100" / "cifar100"
    splits = {"train": 24, "test": 8}
    write_images(folder, (32, 32, 3), splits, "img", labels="fine_label")
    return tmp_path / "hf"


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Photographs in the layout of ImageNet, of ten of its classes."""
    pytest.importorskip("datasets")
    folder = tmp_path / "hf" / "ILSVRC" / "imagenet-1k" / "data"
    write_images(folder, (48, 40, 3), {"train": 24, "validation": 10}, "image")
    return tmp_path / "hf"


def test_full_measures_spectra_of_published_files(cifar100: Path, tmp_path: Path) -> None:
    """By a smaller network with batch normalisation, chunk by chunk, without kept graphs."""
    typed = ["paper=rmt_lr", "scale=full", "arm=vgg16", "model=small_cnn", "model.widths=[4,4,8]",
        "seed=1", *TINY, "examples=16", f"data.root={cifar100}",
        "spectra={epochs:[0,1],sizes:[4],batches:2,chunk:8,lanczos_steps:3,projected:2}",
    ]  # fmt: skip
    summary = finished(tmp_path / "out", *typed).summary()
    for epoch in (0, 1):
        for kind in ("hessian", "ggn"):
            assert summary[f"test/{kind}/top/e{epoch}"] > 0
            assert summary[f"test/{kind}/top/e{epoch}/b4"] > 0
        assert summary[f"test/ggn/bottom/e{epoch}"] > -1e-3


@pytest.mark.parametrize(
    ("scale", "arm", "network"),
    [
        ("full_scaling", "adam_root_b512", []),
        ("full_learner", "on_the_fly", ["model=small_cnn", "method.lanczos_steps=2"]),
        ("full_learner", "by_hand", ["model=small_cnn"]),
    ],
)
def test_full_trains_on_published_files(
    scale: str, arm: str, network: list[str], cifar100: Path, tmp_path: Path
) -> None:
    typed = ["paper=rmt_lr", f"scale={scale}", f"arm={arm}", "seed=1", f"data.root={cifar100}"]
    summary = finished(tmp_path / "out", *typed, *TINY, *network).summary()
    assert summary["steps"] == 2
    assert 0 < summary["train/loss"] < 20
    assert 0 <= summary["test/accuracy"] <= 1


def test_the_learner_measures_streamed_photographs(imagenet: Path, tmp_path: Path) -> None:
    typed = ["paper=rmt_lr", "scale=full_imagenet32", "arm=on_the_fly", "seed=1",
        f"data.root={imagenet}", "dataset.workers=0", "model=small_cnn", "method.lanczos_steps=2",
    ]  # fmt: skip
    summary = finished(tmp_path / "out", *typed, *TINY).summary()
    assert summary["steps"] == 2
    assert summary["learner/products"] == 2  # of one measurement, which set the rate
    assert summary["learner/rate"] > 0


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=spectra spectra.sizes=[3]", "batches of 3 do not divide 256"),
        ("arm=adam method=gradient_noise", "cannot use GradientNoise"),
    ],
)
def test_a_bad_choice_is_one_line(typed: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, "paper=rmt_lr", "scale=smoke", "seed=0", *typed.split())
