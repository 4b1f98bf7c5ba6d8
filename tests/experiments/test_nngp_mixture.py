"""What is special to scale mixtures: limits, likelihoods, shifts, what the paper set."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.nngp_mixture import classification, regression
from repro.experiments.nngp_mixture.classification import (
    Classifier,
    NetworkEnsemble,
    SparseClassifier,
    plain_cnn,
)
from repro.experiments.nngp_mixture.limits import Ensemble
from repro.experiments.nngp_mixture.regression import KernelSearch, KernelTraining, Regression
from rooms import configs, evaluated, logged, refusal, summaries
from scipy import stats

from repro.data.base.iterators import generator_for
from repro.data.base.spoilt import Spoilt
from repro.methods.nngp_mixture import FixedScale, InverseGamma, NNGPKernel, Sampled
from repro.methods.nngp_mixture.kernels import unsoftplus
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.method import Method
from repro.training.execute import build_module
from repro.training.procedure import Procedure

PAPER = load_paper("nngp_mixture")
SMALL = ["paper=nngp_mixture", "scale=smoke"]


def test_smoke_measures(study: Study) -> None:
    ends = summaries(study)
    assert ends["wide_512"]["test/prior/ks"] < 1.63 / 200**0.5
    assert ends["wide_512"]["test/last/ks"] < ends["wide_32"]["test/last/ks"]
    assert ends["all_16"]["test/all/mse"] < 0.1
    # The mean does not depend on the prior, the likelihood does.
    assert ends["ig"]["test/nll"] != ends["nngp"]["test/nll"]
    assert 0.8 < ends["ig"]["test/coverage"] <= 1
    assert ends["ig"]["test/sampling/effective"] > 1
    assert 0 < ends["ig"]["test/sampling/error"] < 10
    assert ends["burr"]["test/effective_samples"] > 1
    assert 0 <= ends["nngp"]["test/matches/nngp_ml2"] <= 1
    difference = ends["ig"]["test/nll"] - ends["nngp"]["test/nll"]
    assert ends["ig"]["test/nll_minus/nngp"] == pytest.approx(difference, abs=1e-5)
    assert ends["svtp_missing"]["test/df"] > 0
    assert 0 < ends["svtp_missing"]["test/unknown_auroc"] < 1
    assert ends["ensemble_heavy"]["test/noise/nll"] > 0


# -- What is logged, of laws and predictions that are known ----------------------------------------

ABSENT: Any = None
PLAIN: dict[str, Any] = {"method": Method(), "optimizer": ABSENT, "schedule": ABSENT}


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """What hooks of a room log, whose schedule has just cut the rate to 0.01."""
    monkeypatch.setattr(Procedure, "watch", lambda *_: True)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.01}])

    def validate(room: Any, *hooks: Callable[[], object]) -> dict[str, float]:
        room.trainer = SimpleNamespace(should_stop=False)
        room.lr_schedulers = lambda: SimpleNamespace(optimizer=optimizer)
        with torch.no_grad():
            return logged(room, *hooks)

    return validate


def distance(values: Any, law: Any) -> float:
    """Of Kolmogorov and Smirnov, between rising values and a law."""
    steps = np.arange(len(values) + 1) / len(values)
    below = law.cdf(values)
    return float(max((steps[1:] - below).max(), (below - steps[:-1]).max()))


@pytest.mark.parametrize("trained", ["last", "all"])
def test_distances_are_those_of_quantiles(trained: Any) -> None:
    """Of forty networks outputs are evenly spaced quantiles: of a law's own they are 1/80 away."""
    prior = InverseGamma(3.0, 2.0)
    kernel = NNGPKernel(1, "relu", 1.4, 0.3)
    room: Any = Ensemble(kernel, prior, width=2, networks=40, train=trained, **PLAIN)
    room.y, room.points = torch.tensor([1.0, -2.0]).double(), torch.eye(4).double()
    K = kernel(room.points[:2]).detach().numpy()
    q = float(room.y.numpy() @ np.linalg.solve(K, room.y.numpy()))
    mean, variance = np.array([0.5, -1.0]), np.array([0.4, 3.0])
    # Student's t of 2α degrees of freedom and β/α; the Gaussian of its variance; the posterior.
    laws = {
        "ks": (stats.t(6), (2 / 3) ** 0.5),
        "ks_gaussian": (stats.norm, 1.0),
        "ks_posterior": (stats.t(8), ((2 + q / 2) / 4) ** 0.5),
    }
    levels = (np.arange(40) + 0.5) / 40

    def outputs(law: str) -> torch.Tensor:
        shape, scale = laws[law]
        drawn = mean + scale * variance**0.5 * shape.ppf(levels)[:, None]
        return torch.from_numpy(np.concatenate([np.ones((40, 2)), drawn], 1))

    room.limit = torch.from_numpy(mean), torch.from_numpy(variance)
    for own in laws:
        room.descent = SimpleNamespace(outputs=outputs(own))
        room.start = room._distances("test/prior", *room.limit)
        found = logged(room, lambda: room.test_step(None, 0))
        values = laws[own][1] * laws[own][0].ppf(levels)
        far = {name: distance(values / scale, law) for name, (law, scale) in laws.items()}
        assert far[own] == pytest.approx(1 / 80)
        assert found["test/prior/ks"] == pytest.approx(far["ks"])
        assert found["test/prior/ks_gaussian"] == pytest.approx(far["ks_gaussian"])
        expected = {
            "last": {"test/last/ks": far["ks"], "test/last/ks_posterior": far["ks_posterior"]},
            "all": {"test/all/ks": far["ks"], "test/all/ks_posterior": far["ks_posterior"]},
        }[trained]
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        assert found[f"test/{trained}/mse"] == pytest.approx((0 + 9) / 2)
        assert found["test/ks_noise"] == pytest.approx(stats.kstwobign.ppf(0.95) / 40**0.5, 0.01)


def explicit(kernel: NNGPKernel, train: Any, x_star: torch.Tensor, noise: float) -> Any:
    """Mean and variance of targets by inverting a matrix, and that matrix."""
    x, y = train
    K, N = kernel(torch.cat([x, x_star])).detach().numpy(), len(x)
    C = K[:N, :N] + noise * np.eye(N)
    gain = K[N:, :N] @ np.linalg.inv(C)
    return gain @ y.numpy(), np.diag(K[N:, N:] - gain @ K[:N, N:]) + noise, C


def test_likelihoods_are_those_of_explicit_matrices(
    monkeypatch: pytest.MonkeyPatch, validated: Any
) -> None:
    """Student's t where targets are far off, and narrow Gaussians where they are on the mean."""
    ticks = iter([1, 4, 6, 10, 15, 20, 30, 2, 7, 8, 10, 17, 20, 40] * 2)
    monkeypatch.setattr(regression, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(regression, "Sampled", lambda _: Sampled(FixedScale()))  # sampled exactly
    laws: Any = {"ig": [InverseGamma(2.0, 3.0)], "nngp": [FixedScale(0.01)]}
    room: Any = KernelSearch(
        1, "relu", [1.4], [0.3], [0.1, 0.5], laws, "ig", references=["nngp"], **PLAIN
    )
    draws = generator_for(0)
    sets: dict[str, Any] = {}
    expected: dict[str, dict[str, float]] = {"ig": {}, "nngp": {}}
    errors, evidence = dict[str, float](), dict[str, float]()
    for name, noise in (("diabetes", 0.5), ("gaussian", 0.1)):
        x, y, x_star = (
            torch.randn(size, generator=draws).double() for size in ((6, 2), (6,), (3, 2))
        )
        mean, v, C = explicit(room.kernels[0], (x, y), x_star, noise)
        y_star = mean + (10 if name == "diabetes" else 0)
        scale = ((3 + y.numpy() @ np.linalg.inv(C) @ y.numpy() / 2) / (2 + 3) * v) ** 0.5
        log_p = stats.t(10, mean, scale).logpdf(y_star)
        expected["ig"][name] = -log_p.mean()
        errors[name] = abs(stats.norm(mean, v**0.5).logpdf(y_star) - log_p).max()
        evidence[name] = stats.multivariate_t(np.zeros(6), 3 / 2 * C, 4).logpdf(y) / 6
        expected["nngp"][name] = -stats.norm(mean, (0.01 * v) ** 0.5).logpdf(y_star).mean()
        test = (x_star, torch.from_numpy(y_star))
        sets[name] = {"train": (x, y), "val": (x, y), "test": test}
    monkeypatch.setattr(
        room, "part", lambda split: {name: each[split] for name, each in sets.items()}
    )
    monkeypatch.setattr(room, "target_stds", lambda: {"diabetes": 1.0, "gaussian": 2.0})
    for name in laws:  # the second noise is best for the one, the first for the other
        scores = torch.tensor([[1.0, 0.5], [0.5, 1.0]])[:, None, None]
        room.register_buffer(f"scores_{name}", scores)
    found = logged(room, lambda: room.test_step(None, 0))
    ig, nngp = expected["ig"], expected["nngp"]
    assert found["test/nll/diabetes"] == pytest.approx(ig["diabetes"])
    assert found["test/nll/gaussian"] == pytest.approx(ig["gaussian"])
    behind = {name: ig[name] - nngp[name] for name in ig}
    assert found["test/nll_minus/nngp/diabetes"] == pytest.approx(behind["diabetes"])
    assert found["test/nll_minus/nngp/gaussian"] == pytest.approx(behind["gaussian"])
    assert found["test/nll"] == pytest.approx(sum(ig.values()) / 2)
    assert found["test/nll_original/gaussian"] == pytest.approx(ig["gaussian"] + math.log(2))
    for name, far in (("diabetes", 10), ("gaussian", 0)):
        assert found[f"test/rmse/{name}"] == pytest.approx(far)
        assert found[f"test/evidence/{name}"] == pytest.approx(evidence[name])
        assert found[f"test/sampling/error/{name}"] == pytest.approx(errors[name])
    assert ig["diabetes"] < nngp["diabetes"]
    assert expected["ig"]["gaussian"] > expected["nngp"]["gaussian"]
    assert found["test/matches/nngp/diabetes"] == 1
    assert found["test/matches/nngp/gaussian"] == 0
    assert found["test/matches/nngp"] == 0.5
    assert found["time/solve_seconds"] == (3 + 5) / 2
    assert found["time/predict_seconds"] == (2 + 1) / 2
    assert found["time/sampling_seconds"] == (5 + 7) / 2
    assert validated(room, lambda: room.validation_step(None, 0)) == {"val/nll": 0.5}
    room.tolerance = 1.01 * behind["gaussian"]
    assert logged(room, lambda: room.test_step(None, 0))["test/matches/nngp"] == 1


def test_few_examples_have_the_noise_that_validation_wants() -> None:
    """Of six equal examples all draws are the same, and six of six are not few."""
    laws: Any = {"nngp": [FixedScale()]}
    noises, draws = [0.1, 1.0], generator_for(0)
    room: Any = KernelSearch(
        1, "relu", [1.4], [0.3], noises, laws, "nngp", sizes=[2, 4, 6], subsets=3, **PLAIN
    )
    x, x_val, x_test = (torch.randn(size, 2, generator=draws).double() for size in (1, 3, 3))
    sets = {
        "train": (x.expand(6, 2), torch.ones(6).double()),
        "val": (x_val, torch.full((3,), 0.2).double()),
        "test": (x_test, torch.full((3,), 5.0).double()),  # so far off that it wants the other
    }
    room.part = lambda split: {"diabetes": sets[split]}
    found = room._small(0, "nngp", 0, "diabetes", sets["test"])
    assert found.keys() == {"test/few/2/nll", "test/few/4/nll"}
    for size in (2, 4):
        train = (x.expand(size, 2), torch.ones(size).double())
        nll = {
            split: [
                -stats.norm(mean, v**0.5).logpdf(sets[split][1]).mean()
                for noise in noises
                for mean, v, _ in [explicit(room.kernels[0], train, sets[split][0], noise)]
            ]
            for split in ("val", "test")
        }
        best = int(np.argmin(nll["val"]))
        assert best != int(np.argmin(nll["test"]))
        assert found[f"test/few/{size}/nll"] == pytest.approx(nll["test"][best])


def test_training_keeps_the_process_that_validates_best(validated: Any) -> None:
    """Two sets, of which one has seen a better process."""
    room: Any = KernelTraining(NNGPKernel(1, "relu", 1.4, 0.3), 0.5, **PLAIN)
    x, y, x_val = torch.eye(2).double(), torch.tensor([1.0, -2.0]).double(), torch.ones(1, 2)
    room.part = lambda split: dict.fromkeys(
        ("new", "old"), (x, y) if split == "train" else (x_val.double(), y[:1])
    )
    room.setup("fit")
    with torch.no_grad():
        room.best[1] = -10
        for name, noise in (("new", 0.1), ("old", 0.2)):
            room.models[name].raw_noise.copy_(unsoftplus([noise]))
    laws = [explicit(room.models["new"].kernel, (x, y), x_val, noise) for noise in (0.1, 0.2)]
    new, old = (-float(stats.norm(mean, v**0.5).logpdf(1.0)[0]) for mean, v, _ in laws)
    found = validated(room, lambda: room.validation_step(None, 0))
    assert found["val/nll"] == pytest.approx((new + old) / 2)
    assert room.best.tolist() == pytest.approx([new, -10])
    assert [float(room.kept[name].noise) for name in ("new", "old")] == pytest.approx([0.1, 0.5])


def test_outliers_are_so_many_and_go_both_ways() -> None:
    room: Any = Regression(outliers=0.1, **PLAIN)
    room.whole = lambda _: {"diabetes": (torch.zeros(1000, 1), torch.zeros(1000, 1).double())}
    ((_, y),) = room.part("train").values()
    assert y.unique().tolist() == [-6, 0, 6]
    assert 0.07 < float((y != 0).double().mean()) < 0.13
    assert room.part("train") is room.part("train")  # drawn once


@pytest.mark.parametrize("below", [0.0, 0.02])
def test_training_ends_where_the_rate_is_cut_below_a_bound(validated: Any, below: float) -> None:
    room: Any = Regression(stop_below=below, **PLAIN)
    assert validated(room, lambda: room.watch({"nll": 2.0})) == {"val/nll": 2.0}
    assert room.trainer.should_stop == (below > 0.01)


class Confident(Classifier):
    """Says class 0 of three with the probability that an image is filled with."""

    def log_probabilities(self, x: torch.Tensor, final: bool) -> torch.Tensor:
        p_B = x.flatten(1)[:, :1]
        return torch.cat([p_B, (1 - p_B) / 2, (1 - p_B) / 2], 1).log()


def test_measures_of_known_confidence_under_every_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four examples are of class 0, of which the classifier is as sure as images say."""
    sure = {"noise": 0.8, "impulse": 0.7, "roll": 0.6, "blur": 0.5}
    monkeypatch.setattr(
        classification, "shifted", lambda x, kind, *_: torch.full_like(x, sure[kind])
    )
    shifts = {name: [name, 1.0] for name in sure}
    room: Any = Confident(3, Spoilt(), shifts, **PLAIN)
    found = evaluated(room, [(torch.full((4, 1, 2, 2), 0.9), torch.tensor([0, 0, 0, 1]))])

    def nll(p: float) -> float:
        return -(3 * math.log(p) + math.log((1 - p) / 2)) / 4

    assert found["test/nll"] == pytest.approx(nll(0.9))
    assert found["test/accuracy"] == 3 / 4
    assert found["test/ece"] == pytest.approx(0.9 - 3 / 4)
    assert found["test/noise/nll"] == pytest.approx(nll(0.8))
    assert found["test/impulse/nll"] == pytest.approx(nll(0.7))
    assert found["test/roll/nll"] == pytest.approx(nll(0.6))
    assert found["test/blur/nll"] == pytest.approx(nll(0.5))
    assert found["test/shifted/nll"] == pytest.approx(sum(map(nll, sure.values())) / 4)
    assert found["test/shifted/ece"] == pytest.approx((0.05 + 0.05 + 0.15 + 0.25) / 4)


def test_classes_that_were_left_out_are_found_by_doubt(validated: Any) -> None:
    """Two known examples and two of class 2, all said to be of class 0: of four pairs one fails."""
    room: Any = Confident(3, Spoilt(drop=[2]), None, **PLAIN)
    batch = (
        torch.tensor([0.9, 0.6, 0.7, 0.5]).view(4, 1, 1, 1),
        torch.tensor([0, 0, 2, 2]),
    )
    found = evaluated(room, [batch])
    assert found["test/unknown_auroc"] == 3 / 4
    assert found["test/known/nll"] == pytest.approx(-math.log(0.9 * 0.6) / 2)
    steps = room.on_validation_start, lambda: room.validation_step(batch, 0)
    found = validated(room, *steps, room.on_validation_epoch_end)
    assert found["val/accuracy"] == 1 / 2
    assert found["val/nll"] == pytest.approx(-math.log(0.9 * 0.6 * 0.15 * 0.25) / 4)


def test_an_ensemble_predicts_by_its_members_mean_logits() -> None:
    known: Any = {"classes": 2, "training_set": Spoilt(), "shifts": {}, **PLAIN}
    room: Any = NetworkEnsemble([1, 1, 2], members=2, channels=1, depth=1, **known)
    for member, weight in zip(room.members, (1.0, 3.0), strict=True):
        first, last = member[0], member[-1]  # features are 1 at both positions
        for parameter, value in ((first.weight, 0.0), (first.bias, 1.0), (last.weight, 0.0)):
            torch.nn.init.constant_(parameter, value)
        torch.nn.init.zeros_(last.bias)
        last.weight.data[0] = weight
    room.sigmas = torch.tensor([0.5, 2.0])
    found = evaluated(room, [(torch.ones(1, 1, 1, 2), torch.tensor([1]))])
    assert found["test/largest_sigma"] == 2
    # Logits of 2 and 6 for class 0, and 0 for the other.
    assert found["test/nll"] == pytest.approx(math.log(1 + math.exp(4)))


def test_members_begin_with_outputs_of_their_features_size() -> None:
    torch.manual_seed(0)
    network: Any = plain_cnn([1, 8, 8], classes=100, channels=4, depth=2)
    assert float(network[-1].weight.std()) == pytest.approx(1 / 16, rel=0.02)  # 256 features
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 100)


def test_inducing_inputs_are_the_first_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    room: Any = SparseClassifier(
        NNGPKernel(1), [1], 5, 2.0, 3.0, 1e-6, 2, 2, 2,
        classes=3, training_set=Spoilt(), shifts={}, **PLAIN,
    )  # fmt: skip
    monkeypatch.setattr(Classifier, "setup", lambda *_: None)
    examples = torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 2, 1])
    room.whole, room.data = lambda _: {"digits": examples}, SimpleNamespace(normalise=None)
    room.setup("fit")
    assert room.process.inducing.flatten().tolist() == [0, 3, 4, 1, 5]


def test_a_mixtures_degrees_of_freedom_are_twice_the_shape_of_its_scale() -> None:
    room: Any = SparseClassifier(
        NNGPKernel(1), [1, 1, 2], 3, 2.0, 3.0, 1e-6, 2, 2, 2,
        classes=2, training_set=Spoilt(), shifts={}, **PLAIN,
    )  # fmt: skip
    with torch.no_grad():
        room.process.raw_scale.copy_(unsoftplus([5.0, 3.0]))
        room.process.inducing.normal_(generator=generator_for(0))
    found = evaluated(room, [(torch.ones(1, 1, 1, 2).double(), torch.tensor([1]))])
    assert found["test/df"] == pytest.approx(10)
    assert found["test/scale_mean"] == pytest.approx(3 / 5)


# -- Arms and settings -----------------------------------------------------------------------------


def test_full_is_what_the_paper_did() -> None:
    runs = configs("paper=nngp_mixture", "scale=full", "arm=[ig,all_512,wide_512,tp_trained]")
    assert runs["ig"].dataset.sets.keys() >= {"boston", "naval", "power", "yacht"}
    assert (runs["wide_512"].ensemble.width, runs["wide_512"].ensemble.networks) == (512, 1000)
    assert (runs["all_512"].descent.width, runs["all_512"].descent.kernel.depth) == (512, 3)
    kernel = runs["tp_trained"].evidence.kernel
    assert (kernel.depth, kernel.w_std, runs["tp_trained"].evidence.noise) == (4, 1.0, 1e-6)
    for scale, shape in (("full_mnist", [1, 28, 28]), ("full_cifar10", [3, 32, 32])):
        typed = [f"scale={scale}", "arm=svtp_images_missing"]
        (images,) = configs("paper=nngp_mixture", *typed).values()
        assert isinstance(build_module(images), SparseClassifier)
        assert (images.sparse.kernel.kind, images.sparse.inducing) == ("conv", 200)
        assert images.sparse.input_shape == shape
        assert (images.training.epochs, images.optimizer.lr) == (300, 0.01)
    uci = configs("paper=nngp_mixture", "scale=mini_uci", "arm=burr")["burr"]
    assert len(uci.dataset.sets) == 5


@pytest.mark.parametrize("arm", ["ig", "tp_trained", "svtp_missing", "ensemble_heavy"])
def test_a_killed_run_with_a_schedule_that_watches_ends_alike(arm: str, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, where it has one, and continued from its checkpoint."""
    typed = [
        f"arm={arm}", "seed=0", "training.epochs=4", "training.val_every=1",
        "search.b_stds=[0.1,0.2,0.3,0.4]", "schedule=plateau", "schedule.watch=nll",
        *(["~dataset.sets.diabetes"] if arm in ("ig", "tp_trained") else []),
        *(["training.steps_per_epoch=3"] if arm[:4] in ("svtp", "ense") else []),
    ]  # fmt: skip
    assert len(same_after_a_kill(tmp_path, 2, *SMALL, *typed).summary()) > 5


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=ig search.prior=igg", "Did you mean 'ig'"),
        ("arm=ig training.epochs=2", "training.epochs=2 is too few"),
        ("arm=ig dataset=digits", "not a regression on one target"),
        ("arm=ig method=gradient_noise", "say method=none"),
        ("arm=svgp dataset=diabetes", "choose a data set that has classes"),
        ("arm=svgp shifts.noise=[nois,1]", "Did you mean 'noise'"),
        ("arm=svgp training_set.drop=[0,1,2,3,4,5,6,7,8,9]", "leave no examples"),
        ("arm=wide_32 ensemble.train=some", "last or all"),
    ],
)
def test_a_bad_knob_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    assert complaint in refusal(tmp_path, *SMALL, "seed=0", *typed.split())


def test_no_test_example_and_no_test_target_is_ever_spoilt() -> None:
    config = configs(*SMALL, "arm=ig_outliers")["ig_outliers"]
    module: Any = build_module(config)
    data = instantiate(config.dataset)
    data.setup()
    module.data = data
    for split, changed in (("train", True), ("val", True), ("test", False)):
        for name, (_, y) in module.part(split).items():
            clean = data.whole(split)[name][1][:, 0].double()
            moved = (y - clean).abs()
            assert bool((moved > 0).any()) == changed
            assert set(moved[moved > 0].round().tolist()) <= {6.0}
