"""What is special to this paper's room: what its numbers mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from repro.experiments.rmt_lr.base import best_of, exponent, grid, largest_below
from repro.experiments.rmt_lr.spectra import Spectra, Spiked
from repro.experiments.rmt_lr.sweeps import Damping, Learner, Scaling
from rooms import configs, refusal, summaries

from repro.data.tables.bundled import digits
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("rmt_lr")
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def module(arm: str, *typed: str, scale: str = "mini") -> Any:
    """An arm's module, as at a scale."""
    return build_module(configs("paper=rmt_lr", f"scale={scale}", f"arm={arm}", *typed)[arm])


def test_rates_from_losses() -> None:
    grid_K = grid(0.1, 2.0, 5)
    losses_K = torch.tensor([0.9, 0.5, 0.7, 1.5, torch.inf])
    assert best_of(grid_K, losses_K) == pytest.approx(0.2)
    assert largest_below(grid_K, losses_K, 1.0) == pytest.approx(0.4)
    assert math.isnan(best_of(grid_K, losses_K.sort().values))  # better ones may lie below
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
    flat = [found[f"test/slope/best/{segment}"] for segment in ("plateau", "high")]
    assert flat == pytest.approx([0, 0], abs=1e-9)
    assert found["test/slope/stable/linear"] == pytest.approx(1, abs=0.1)
    assert found["test/rate/best/b8"] == pytest.approx(0.8, rel=0.1)
    assert found["test/censored"] == 0
    assert a_study(lambda size: 0.1 * size**0.5)["test/slope/best/high"] == pytest.approx(
        0.5, abs=0.03
    )
    assert a_study(lambda size: 1e-9)["test/censored"] > 0


def test_excess_is_that_of_each_rule_over_the_best_of_the_grid() -> None:
    scaling: Scaling = module("sgd", "scaling.carried_to=[4,64]", "scaling.rates.count=3")
    scaling.found = {"start": 2.0}
    for size in (4, 64):
        scaling.found[f"epochs/{size}"] = [0.5, 0.2, 9.0, 0.3, 0.4, 9.0, 0.2]
    found = scaling._excess("epochs")
    assert found == pytest.approx({"constant": 0.1, "root": 0.2, "linear": 1.8, "rmt": 0.0})


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


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=spectra spectra.sizes=[3]", "batches of 3 do not divide 256"),
        ("arm=adam method=gradient_noise", "cannot use GradientNoise"),
    ],
)
def test_a_bad_choice_is_one_line(typed: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, "paper=rmt_lr", "scale=smoke", "seed=0", *typed.split())
