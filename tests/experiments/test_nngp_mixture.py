"""What is special to scale mixtures: limits, likelihoods, shifts, what the paper set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.nngp_mixture.classification import SparseClassifier
from repro.experiments.nngp_mixture.shifts import TrainingSet, shifted
from rooms import configs, refusal, summaries

from repro.errors import UserError
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

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
        ("arm=svgp training_set.drop=[0,1,2,3,4,5,6,7,8,9]", "leaves no examples"),
        ("arm=wide_32 ensemble.train=some", "last or all"),
    ],
)
def test_a_bad_knob_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    assert complaint in refusal(tmp_path, *SMALL, "seed=0", *typed.split())


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
