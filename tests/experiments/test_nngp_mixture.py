"""The room of scale mixtures, at scale=smoke and by composition at the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failures import fails_in_one_line
from interruptions import run_until, timeless
from repro.experiments.nngp_mixture.base import Room
from repro.experiments.nngp_mixture.classification import NetworkEnsemble, SparseClassifier
from repro.experiments.nngp_mixture.limits import Ensemble
from repro.experiments.nngp_mixture.regression import KernelSearch, KernelTraining
from repro.experiments.nngp_mixture.shifts import TrainingSet, shifted

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module

PAPER = load_paper("nngp_mixture")
SMALL = ["paper=nngp_mixture", "scale=smoke", "n_jobs=1"]
# One arm of every module.
KINDS: dict[str, type[Room]] = {
    "wide_32": Ensemble,
    "all_16": Ensemble,
    "ig": KernelSearch,
    "tp_trained": KernelTraining,
    "svtp_missing": SparseClassifier,
    "ensemble_heavy": NetworkEnsemble,
}


def made(tmp_path: Path, *typed: str) -> Study:
    return create_study(plan_study([*SMALL, *typed]), tmp_path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One seed of the arms that show something at scale=smoke, run once for all tests here."""
    arms = "wide_32,wide_512,all_16,nngp,ig,burr,tp_trained,svtp_missing,ensemble_heavy"
    small = made(tmp_path_factory.mktemp("outputs"), f"arm=[{arms}]", "seed=0")
    run_study(small)
    return small


def test_smoke_runs_measures_and_draws(study: Study) -> None:
    errors = [run.record()["error"] for run in study.runs if run.status() != Status.FINISHED]
    assert errors == []
    ends = {run.record()["arm"]: run.summary() for run in study.runs}
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
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert {verdict.verdict for verdict in verdicts.values()} == {Verdict.NOT_AT_SCALE}
    written = {path.name for path in draw_study(study)}
    assert written >= {"limits.png", "regression.png"}


def composed(scale: str, *arms: str) -> dict[str, Any]:
    """Composed configs by arm."""
    typed = ["paper=nngp_mixture", f"scale={scale}", "seed=0", f"arm=[{','.join(arms)}]"]
    return {run.arm: run.config for run in plan_study(typed).runs}


def test_every_arm_composes_and_builds() -> None:
    # The arms on a scale's own images are the same as those on the digits, and built below.
    runs = composed("mini", *(arm for arm in PAPER.arms if "_images" not in arm))
    for config in runs.values():
        assert isinstance(build_module(config), Room)


def test_full_is_what_the_paper_did() -> None:
    runs = composed("full", "ig", "all_512", "wide_512", "tp_trained")
    assert runs["ig"].dataset.sets.keys() >= {"boston", "naval", "power", "yacht"}
    assert (runs["wide_512"].ensemble.width, runs["wide_512"].ensemble.networks) == (512, 1000)
    assert (runs["all_512"].descent.width, runs["all_512"].descent.kernel.depth) == (512, 3)
    kernel = runs["tp_trained"].evidence.kernel
    assert (kernel.depth, kernel.w_std, runs["tp_trained"].evidence.noise) == (4, 1.0, 1e-6)
    for scale, shape in (("full_mnist", [1, 28, 28]), ("full_cifar10", [3, 32, 32])):
        (images,) = composed(scale, "svtp_images_missing").values()
        assert isinstance(build_module(images), SparseClassifier)
        assert (images.sparse.kernel.kind, images.sparse.inducing) == ("conv", 200)
        assert images.sparse.input_shape == shape
        assert (images.training.epochs, images.optimizer.lr) == (300, 0.01)
    assert len(composed("mini_uci", "burr")["burr"].dataset.sets) == 5


@pytest.mark.parametrize("arm", KINDS)
def test_a_killed_run_ends_with_the_same_numbers(arm: str, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, where it has one, and continued from its checkpoint."""
    watches = arm not in ("wide_32", "all_16")
    typed = [
        f"arm={arm}", "seed=0", "training.epochs=4", "training.val_every=1",
        "training.checkpoint.every_seconds=0", "training.checkpoint.every_steps=1",
        "search.b_stds=[0.1,0.2,0.3,0.4]", f"schedule={'plateau' if watches else 'cosine'}",
        *(["schedule.watch=nll"] if watches else []),
        *(["~dataset.sets.diabetes"] if arm in ("ig", "tp_trained") else []),
        *(["training.steps_per_epoch=3"] if arm[:4] in ("svtp", "ense") else []),
    ]  # fmt: skip
    straight, killed = made(tmp_path / "a", *typed), made(tmp_path / "b", *typed)
    run_study(straight)
    run_until(killed, KINDS[arm], lambda module, index: module.global_step == 2)
    run_study(killed)
    ends = [timeless(each.runs[0]) for each in (straight, killed)]
    assert straight.runs[0].status() == Status.FINISHED
    assert ends[0] == ends[1]
    assert len(ends[0]) > 5
    assert killed.runs[0].record()["attempts"] == 2


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=ig search.prior=igg", "Did you mean 'ig'"),
        ("arm=ig training.epochs=2", "training.epochs=2 is too few"),
        ("arm=ig dataset=digits", "not a regression on one target"),
        ("arm=ig method=gradient_noise", "say method=none"),
        ("arm=svgp dataset=diabetes", "choose a data set that has classes"),
        ("arm=svgp shifts.noise=[nois,1]", "Did you mean 'noise'"),
        ("arm=svgp training_set.drop=[0,1,2,3,4,5,6,7,8,9]", "leaves no examples"),
        ("arm=tp_trained evidence.kernel.act=rellu", "Did you mean 'relu'"),
        ("arm=wide_32 ensemble.train=some", "last or all"),
    ],
)
def test_a_bad_knob_fails_the_run_in_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    fails_in_one_line(made(tmp_path, "seed=0", *typed.split()), complaint)


def test_shifts_and_spoilt_training_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(32.0).view(2, 1, 4, 4)
    assert torch.equal(
        shifted(x, "roll", 1, generator)[0, 0, 0], torch.tensor([3.0, 0.0, 1.0, 2.0])
    )
    struck = shifted(x.expand(500, 2, 1, 4, 4).flatten(0, 1), "impulse", 0.2, generator)
    changed = (struck != x.repeat(500, 1, 1, 1)).double().mean()
    assert float(changed) == pytest.approx(0.2, abs=0.02)
    assert set(struck[struck != x.repeat(500, 1, 1, 1)].tolist()) <= {0.0, 31.0}
    assert float(shifted(x, "blur", 3, generator)[0, 0, 1, 1]) == pytest.approx(5.0)
    y = torch.arange(3).repeat(2000)
    images = torch.zeros(6000, 1)
    _, dropped = TrainingSet(drop=[1]).spoil(images, y, 3, generator)
    assert sorted(dropped.unique().tolist()) == [0, 2]
    _, noisy = TrainingSet(label_noise=0.3).spoil(images, y, 3, generator)
    assert float((noisy != y).double().mean()) == pytest.approx(0.2, abs=0.02)
    _, few = TrainingSet(imbalance=0.5).spoil(images, y, 3, generator)
    shares = np.bincount(few) / 2000
    np.testing.assert_allclose(shares, [1, 0.5, 0.25], atol=0.04)
    with pytest.raises(UserError, match="lies in"):
        TrainingSet(imbalance=0.0)


def test_no_test_example_and_no_test_target_is_ever_spoilt(tmp_path: Path) -> None:
    config = plan_study([*SMALL, "arm=ig_outliers", "seed=0"]).runs[0].config
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
