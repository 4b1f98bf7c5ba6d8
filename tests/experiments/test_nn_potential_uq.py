"""What the room's numbers mean: each metric on samples whose mean and spread are made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from repro.experiments.nn_potential_uq.module import PotentialUQ
from rooms import configs, logged, refusal
from torch import Tensor
from torch.distributions import Normal

from repro.data.base.iterators import generator_for
from repro.data.worlds.dihedrals import TwoDihedrals
from repro.errors import UserError
from repro.methods.nn_potential_uq import recalibration, rhat
from repro.records.papers import load_paper
from repro.training.execute import build_module

PAPER = load_paper("nn_potential_uq")
SIZES = [500, 1000, 2000, 4000]
TRUTH = torch.tensor([0.1, 0.2, 0.3, 0.4])
BIAS = {"t1": 0.05, "t01": 0.02, "t001": 0.03}
COOL = {"t1": 1.0, "t01": 0.1, "t001": 0.05}  # std of N = 1, times √N


class Shown:
    """A world whose observables are the first parameters themselves."""

    def reference(self, _: Tensor) -> dict[str, Tensor]:
        return {"density": TRUTH, "free_energy": torch.tensor([-1.0])}

    def observe(self, potentials: Any, *_: Any) -> dict[str, Tensor]:
        theta = potentials.theta_MQ
        return {"density": theta[:, :4], "free_energy": theta[:, 4:5]}


def module(arm: str, *typed: str) -> Any:
    config = configs("paper=nn_potential_uq", "scale=smoke", f"arm={arm}", *typed)[arm]
    built: Any = build_module(config)
    splits = {
        name: TwoDihedrals().draw(8, generator_for(n))
        for n, name in enumerate(("train", "val", "test"))
    }
    built.data = SimpleNamespace(splits=splits, eval_batch_size=5)
    return built


def std(name: str, size: int) -> float:
    return COOL[name] / math.sqrt(size)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chains of three temperatures and four sizes, with means and spreads as the tables say."""
    room = module("sgmcmc", "amounts.all=[500,1000,2000,4000]", "module.reference_size=2000")
    room.world, draws = Shown(), torch.randn(16, generator=generator_for(3))
    unit = ((draws - draws.mean()) / draws.std(correction=0))[:, None]
    samples = torch.zeros(24, 16, room.posterior.size)
    for number, cell in enumerate(room.cells):
        rows = samples[2 * number : 2 * number + 2]
        spread = std(cell.name, cell.size) * torch.stack([unit, unit.flip(0)])
        rows[:, :, :4] = TRUTH + BIAS[cell.name] + spread
        rows[0, :, 4], rows[1, :, 4] = draws, draws.flip(0) + 3
    curve = [torch.full((24,), error) for error in (300.0, 255.0, 251.0, 250.0)]
    room.progress = {"samples": samples, "curve": curve}
    nll = {"t1": 3.0, "t01": 2.0, "t001": 4.0}
    values = iter([nll[cell.name] for cell in room.cells])
    forces = {"test/sigma": 15.0, "test/sigma_ratio": 0.95}
    monkeypatch.setattr(room, "_matched", lambda _: {"val/nll": next(values), **forces})
    return room


def score(name: str, size: int) -> float:
    half = 1.959964 * std(name, size)
    return 2 * half + 40 * max(0.0, BIAS[name] - half)


def test_intervals_of_known_mean_and_spread(shown: Any) -> None:
    found = logged(shown, shown.on_test_epoch_end)
    for size in (500, 1000, 4000):
        for name in ("t1", "t01", "t001"):
            covered = float(BIAS[name] <= 1.96 * std(name, size))
            assert found[f"test/coverage/{name}/n{size}"] == covered
            assert found[f"test/error/{name}/n{size}"] == pytest.approx(BIAS[name], rel=1e-3)
            assert found[f"test/std/{name}/n{size}"] == pytest.approx(std(name, size), rel=1e-3)
            ratio = BIAS[name] / std(name, size)
            assert found[f"test/ratio/{name}/n{size}"] == pytest.approx(ratio, rel=1e-3)
            assert found[f"test/score/{name}/n{size}"] == pytest.approx(score(name, size), rel=1e-3)
    assert {found[f"test/coverage/t1/n{size}"] for size in SIZES} == {0.0, 1.0}


def test_the_temperature_is_that_of_the_best_validation_likelihood(shown: Any) -> None:
    found = logged(shown, shown.on_test_epoch_end)
    drawn = ("t1", "t01", "t001")[
        int(torch.randint(3, (), generator=generator_for(shown.seed, 4)))
    ]  # fmt: skip
    expected = {
        "test/coverage/tval/n4000": float(BIAS["t01"] <= 1.96 * std("t01", 4000)),
        "test/error/tval/n1000": BIAS["t01"],
        "test/score/tval/n1000": score("t01", 1000),
        "test/score/tval/n4000": score("t01", 4000),
        "test/std/tval/n4000": std("t01", 4000),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    for size in (500, 1000, 4000):
        assert found[f"val/chosen/n{size}"] == 0.1
        for metric in ("coverage", "error", "ratio", "score", "std"):
            ours = found[f"test/{metric}/t01/n{size}"]
            assert found[f"test/{metric}/tval/n{size}"] == ours
        random = found[f"test/score/{drawn}/n{size}"]
        assert found[f"test/score/trandom/n{size}"] == random


def test_width_falls_with_the_root_of_the_amount_of_data(shown: Any) -> None:
    found = logged(shown, shown.on_test_epoch_end)
    assert found["test/slope_std/t1"] == pytest.approx(-0.5, rel=1e-3)
    assert found["test/slope_std/tval"] == pytest.approx(-0.5, rel=1e-3)


def test_the_amount_of_data_that_reaches_the_score_of_t1(shown: Any) -> None:
    """T = 1 at 2000 has 0.2, which it reaches there by definition; 8000: never."""
    scores = {"t1": [0.8, 0.4, 0.2, 0.1], "t01": [0.3, 0.1, 0.3, 0.1], "t001": [0.9, 0.9, 0.9, 0.3]}
    scores["tval"] = [0.3, 0.4, 0.2, 0.1]
    found = {
        f"test/{metric}/{name}/n{size}": value
        for metric in ("score", "std")
        for name, values in scores.items()
        for size, value in zip(SIZES, values, strict=True)
    }
    trends = shown.trends(found)
    assert trends["test/log2_size/t1"] == pytest.approx(math.log2(2000))
    assert trends["test/log2_size/t01"] == pytest.approx(math.log2(1000))
    assert trends["test/log2_size/t001"] == pytest.approx(math.log2(8000))
    assert trends["test/log2_size/tval"] == pytest.approx(math.log2(2000))
    found["test/std/t01/n500"] = 0.0  # of which there is no logarithm
    slopes = {f"test/slope_std/{name}" for name in ("t1", "t001", "tval")}
    assert {name for name in shown.trends(found) if "slope" in name} == slopes


def test_mixing_scatter_and_effort(shown: Any) -> None:
    found = logged(shown, shown.on_test_epoch_end)
    draws = shown.progress["samples"][6:8, :, 4:5]  # the chains of T = 1 at N = 1000
    assert found["test/free_energy_rhat/t1/n1000"] == pytest.approx(float(rhat(draws)))
    assert found["test/free_energy_rhat/t1/n1000"] > 1.5
    assert found["test/free_energy/t1/n1000"] == pytest.approx(float(draws.quantile(0.5)))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found["test/free_energy_std/t1/n1000"] == pytest.approx((high - low) / 4)
    density = shown.progress["samples"][6:8, :, :4]
    assert found["test/rhat/t1/n1000"] == pytest.approx(float(rhat(density).mean()))
    assert found["test/rhat/t1/n1000"] < 1.2  # these chains have one mean
    assert found["test/sigma/t1/n4000"] == 15.0
    assert found["test/sigma_ratio/t1/n4000"] == 0.95
    # Three looks of four until within 1 % of the end; 16 steps of two chains.
    assert found["val/gradients_to_end/tval/n1000"] == 0.75 * 32
    assert found["cost/gradients"] == 32


def test_a_chain_is_cut_into_segments_that_are_compared(shown: Any) -> None:
    shown.segments = 2
    found = logged(shown, shown.on_test_epoch_end)
    first, second = shown.progress["samples"][6:8, :, 4:5]
    pieces = torch.stack([first[:8], first[8:], second[:8], second[8:]])
    expected = float(rhat(pieces))
    assert found["test/free_energy_rhat/t1/n1000"] == pytest.approx(expected)


def test_one_width_for_all_bins(shown: Any) -> None:
    shown.global_std = {f"n{size}": 0.01 for size in SIZES}
    found = logged(shown, shown.on_test_epoch_end)
    assert found["test/std/t1/n1000"] == pytest.approx(0.01)
    expected = 0.04 * 0.979982 + 40 * (0.05 - 0.0195996)
    assert found["test/score/t1/n1000"] == pytest.approx(expected, rel=1e-3)
    assert found["test/rms_error/t1/n1000"] == pytest.approx(0.05, rel=1e-3)


def test_forces_of_samples_are_a_mixture() -> None:
    room = module("sgmcmc", "dataset.world.stiffness=800.0")
    samples = torch.stack([room.posterior.start(seed) for seed in range(6)]).view(2, 3, -1)
    samples[..., -1] = torch.linspace(-0.5, 0, 6).view(2, 3)
    found = room._matched(samples)
    (x, target), (test_x, test_target) = room.data.splits["val"], room.data.splits["test"]
    sigma = 20 * samples[..., -1].exp().flatten()
    potentials = room.posterior.at(samples.flatten(0, 1))
    forces = potentials.forces(x, shared=True)
    log_p = Normal(forces, sigma[:, None, None]).log_prob(target).sum(-1)
    assert found["val/nll"] == pytest.approx(-float(log_p.exp().mean(0).log().mean()), rel=1e-5)
    mean = potentials.forces(test_x, shared=True).mean(0)
    rmse = float((mean - test_target).square().mean().sqrt())
    assert found["test/force_rmse"] == pytest.approx(rmse, rel=1e-5)
    assert found["test/force_std"] == pytest.approx(float(forces.std(0, correction=0).mean()))
    assert found["test/sigma"] == pytest.approx(float(sigma.mean()))
    alpha = recalibration(forces.mean(0), forces.var(0), target, members=6)
    assert found["test/alpha"] == pytest.approx(alpha)
    assert "test/alpha" not in room._matched(samples[:, :1])  # two samples are too few
    true = TwoDihedrals(stiffness=800.0).sigma
    assert found["test/sigma_ratio"] == pytest.approx(float(sigma.mean()) / true, rel=1e-3)


def test_members_of_an_ensemble_keep_what_was_best_for_them() -> None:
    """Two members, after three blocks of training; the second number stands for σ."""
    room: Any = SimpleNamespace(
        chains=SimpleNamespace(theta_MQ=None),
        inference=SimpleNamespace(best=True),
        posterior=SimpleNamespace(network_size=1),
        split=lambda _: (None, torch.full((2, 1, 1), 3.0)),
        progress={
            "samples": torch.zeros(2, 1, 2),
            "least": torch.full((2,), math.inf),
            "curve": [],
        },
        _log_scale=torch.log,
    )
    for block, errors in enumerate(([4.0, 1.0], [1.0, 4.0], [9.0, 9.0])):
        room.chains.theta_MQ = torch.full((2, 2), float(block))
        room._forces = lambda *_, errors=errors: 3 + torch.tensor(errors).sqrt().view(2, 1, 1)
        PotentialUQ._look(room)
    assert room.progress["samples"][:, 0].tolist() == [[1, 0], [0, 0]]
    assert torch.stack(room.progress["curve"]).tolist() == [[4, 1], [1, 4], [9, 9]]


def test_what_stands_for_the_scatter_of_an_ensemble_is_its_error() -> None:
    room = module("de")
    theta = torch.zeros(2, room.posterior.size)
    theta[:, room.posterior.network_size] = room._log_scale(torch.tensor([4.0, 900.0]))
    assert room.posterior.sigmas(theta)["forces"].tolist() == pytest.approx([2, 30])


def test_samples_are_taken_at_their_temperatures_steps() -> None:
    """Two chains of each of two temperatures; the first keeps step 3, the second steps 1 and 3."""
    room: Any = SimpleNamespace(
        chains=SimpleNamespace(theta_MQ=None),
        inference=SimpleNamespace(best=False),
        name_M=torch.tensor([0, 1, 0, 1]),
        device=torch.device("cpu"),
        kept=[{3: 0}, {1: 0, 3: 1}],
        progress={"samples": torch.zeros(4, 2, 1)},
    )
    for step in range(4):
        room.chains.theta_MQ = torch.full((4, 1), float(step))
        PotentialUQ._keep(room, step)
    assert room.progress["samples"][..., 0].tolist() == [[3, 0], [1, 3], [3, 0], [1, 3]]


def test_chains_of_different_amounts_begin_with_as_many_states_as_there_are() -> None:
    room = module("sgmcmc", "amounts.all=[4,8]")
    room.on_fit_start()
    assert room.chains.theta_MQ.shape == (12, room.posterior.size)
    assert room.chains.theta_MQ[0].equal(room.chains.theta_MQ[2])  # other chains, other starts
    assert not room.chains.theta_MQ[0].equal(room.chains.theta_MQ[1])
    room = module("sgmcmc", "amounts.all=[4,9]")
    with pytest.raises(UserError, match="9 states are asked for, but there are 8"):
        room.on_fit_start()


def test_noise_and_starts_are_shared_where_the_arm_says_so() -> None:
    theta = torch.zeros(4, 3)
    for arm, alike in (("sgmcmc", False), ("shared_noise", True)):
        room = module(arm)
        room.generator = generator_for(0)
        noise = room._noise(theta)
        assert torch.equal(noise[0], noise[3]) == alike
        assert noise[0].std() > 0
    assert module("same_start").same_start


def test_the_network_has_its_size() -> None:
    room: Any = build_module(configs("paper=nn_potential_uq", "arm=sgmcmc")["sgmcmc"])
    assert sum(each.numel() for each in room.model.parameters()) == 8 * 32 + 32 * 33 + 32 + 33
    assert len(room.cells) * room.chain_count == 72


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("amounts.all=[500,1900]", "1900 states are asked for, but there are 1000"),
        ("sampling.names=[t2]", "'t2' is none of t1, t01"),
        ("method=gradient_noise", "cannot use GradientNoise"),
    ],
)
def test_a_bad_choice_is_one_line(typed: str, complaint: str, tmp_path: Path) -> None:
    typed_all = ["paper=nn_potential_uq", "scale=smoke", "arm=sgmcmc", "seed=0", typed]
    assert complaint in refusal(tmp_path, *typed_all)
