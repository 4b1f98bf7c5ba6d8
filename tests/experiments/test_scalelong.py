"""The room of ScaleLong, at scale=smoke and by composition at the others."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import stop_after, timeless, unplugged
from omegaconf import DictConfig
from repro.experiments.scalelong.fid import frechet_inception_distance
from repro.experiments.scalelong.module import Denoising
from torch import Tensor, nn

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.methods.scalelong import SkipScaler
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Run, Status
from repro.records.series import read_series
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module, execute

PAPER = load_paper("scalelong")
UVIT = ["model=uvit", "model.width=16", "model.heads=2", "model.n_skips=2"]
UNET = ["model=ddpm_unet", "model.width=8", "model.multipliers=[1,2]", "model.groups=4"]
NO_PROBES = ["module.probes.depths=[]"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """All arms of scale=smoke, run once for all tests here."""
    plan = plan_study(["paper=scalelong", "scale=smoke", "seed=0", "n_jobs=1"])
    made = create_study(plan, tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """One run at scale=smoke."""
    return plan_study(["paper=scalelong", "scale=smoke", "arm=org", "seed=0"]).runs[0].config


def of_arm(study: Study, arm: str) -> Run:
    (run,) = (run for run in study.runs if run.record()["arm"] == arm)
    return run


def test_every_arm_finishes_and_reports_its_metrics(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    for run in study.runs:
        baseline_only = {"compare/feature_ratio"}
        missing = set(PAPER.report) - run.summary().keys()
        assert missing == (baseline_only if run.record()["arm"] == "org" else set())


def test_the_theory_is_measured_on_networks_that_all_arms_share(study: Study) -> None:
    org, const, cs, ls = (of_arm(study, arm).summary() for arm in ("org", "const", "cs", "ls"))
    for depth in (2, 4, 8):
        prefix = f"init/n{depth}"
        assert org[f"{prefix}/grad_ratio"] == 1
        for other in (const, cs, ls):
            reference = other[f"{prefix}/grad_ratio"] * other[f"{prefix}/grad_norm"]
            assert reference == pytest.approx(org[f"{prefix}/grad_norm"], rel=1e-4)
    assert org["init/n8/gain"] > const["init/n8/gain"] > cs["init/n8/gain"]
    assert "init/n8/gain_over_theory" not in ls  # which knows no coefficients


def test_smoke_is_judged_and_the_rest_says_where_it_can_be(study: Study) -> None:
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C8"].verdict == Verdict.SUPPORTED
    assert verdicts["C6"].verdict == Verdict.NOT_AT_SCALE


def test_figures_are_written_and_samples_kept(study: Study) -> None:
    names = {path.name for path in draw_study(study) if path.suffix == ".png"}
    assert names == {"samples.png", "theory.png", "training.png"}
    with np.load(of_arm(study, "cs").folder / "artifacts" / "samples.npz") as kept:
        assert kept["images"].shape == (40, 1, 8, 8)


@pytest.mark.parametrize(("arm", "expected"), [("cs", {"training"}), ("ls_separate", set())])
def test_a_study_of_some_arms_draws_what_it_can(
    arm: str, expected: set[str], tmp_path: Path
) -> None:
    typed = ["paper=scalelong", "scale=smoke", f"arm={arm}", "seed=0", "from=null", *NO_PROBES]
    plan = plan_study([*typed, "module.sampling.pictures=0", "training.epochs=1"])
    made = create_study(plan, tmp_path)
    run_study(made)
    assert {path.stem for path in draw_study(made)} == expected


def test_arms_see_the_same_times_and_noises_and_start_alike(study: Study) -> None:
    modules: list[Any] = [build_module(run.config()) for run in study.runs]
    x0 = torch.zeros(3, 1, 8, 8)
    draws = [module._draws(x0, 1, 0, 0, 5) for module in modules]
    for time, noise in draws[1:]:
        assert torch.equal(time, draws[0][0])
        assert torch.equal(noise, draws[0][1])
    assert not torch.equal(modules[0]._draws(x0, 1, 0, 0, 6)[0], draws[0][0])


@pytest.mark.parametrize("scale", PAPER.scales)
def test_every_arm_composes_and_builds(scale: str) -> None:
    runs = plan_study(["paper=scalelong", f"scale={scale}", "seed=0"]).runs
    assert {f"arm={run.arm}" for run in runs} <= {f"arm={arm}" for arm in PAPER.arms}
    for run in runs:
        with torch.device("meta"):
            module = build_module(run.config)
        assert isinstance(module, Denoising)
        assert isinstance(module.model.scaler, SkipScaler)
        if scale.startswith("mini"):
            assert run.config.optimizer.lr == run.config.rates[run.arm]
        if scale == "full":
            depth = 8 if run.arm.startswith("deep") else 6
            assert len(module.model.skip_features) == depth
            assert run.config.optimizer.lr == 2e-4
            assert run.config.training.max_steps == 500_000


def test_the_papers_network_at_full() -> None:
    run = plan_study(["paper=scalelong", "scale=full", "arm=ls", "seed=0"]).runs[1]
    with torch.device("meta"):
        module = build_module(run.config)
    assert isinstance(module, Denoising)
    assert sum(p.numel() for p in module.model.parameters()) == 44_255_328 + 8_497
    assert module.average is not None
    assert not any(p.requires_grad for p in module.average.parameters())


@pytest.mark.parametrize(
    ("arm", "typed"),
    [
        ("ls", ["module.ema=0.9"]),  # compared with `org`, from whose checkpoint it starts
        ("org", ["method.kind=ls", *UVIT, *NO_PROBES]),
        ("org", [*UNET, *NO_PROBES, "optimizer=sgd", "optimizer.lr=0.01"]),  # with dropout
    ],
)
def test_a_run_stopped_midway_ends_with_the_same_bits(
    arm: str, typed: list[str], tmp_path: Path
) -> None:
    """Killed between checkpoints, stopped within an epoch and at its end: nothing shows it."""
    small = ["training.steps_per_epoch=3", "dataset.batch_size=16", "module.eval_draws=1"]
    small += ["training.checkpoint.every_steps=2"]
    plan = plan_study(["paper=scalelong", "scale=smoke", f"arm={arm}", "seed=1", *small, *typed])
    straight, stopped = (create_study(plan, tmp_path / name) for name in ("a", "b"))
    for run in straight.runs:
        assert execute(run.folder) == Status.FINISHED
    for run in stopped.runs:
        with unplugged(Denoising, lambda module, index: module.global_step == 3):
            assert execute(run.folder) == Status.INTERRUPTED
        assert torch.load(run.last_checkpoint, weights_only=True)["global_step"] == 2
        for _ in range(2):  # at the end of the first epoch, then within the second
            stop_after(1, run)
        assert execute(run.folder) == Status.FINISHED

    for one, other in zip(straight.runs, stopped.runs, strict=True):
        assert json.dumps(timeless(one)) == json.dumps(timeless(other))
        assert read_series(one.folder / "metrics.csv") == read_series(other.folder / "metrics.csv")
        left, right = (
            torch.load(each.last_checkpoint, weights_only=True)["state_dict"]
            for each in (one, other)
        )
        assert all(torch.equal(value, right[name]) for name, value in left.items())
        pictures = [np.load(each.folder / "artifacts" / "samples.npz") for each in (one, other)]
        assert np.array_equal(*(each["images"] for each in pictures))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("module.ema", 1.5, "module.ema is null or lies in"),
        ("module.monitor.every", 0, "module.monitor.every is a whole number"),
        ("module.sampling.method", "dpm", "There is no module.sampling.method"),
        ("model.merge", "sum", "model.merge is add or concat, not 'sum'"),
        ("method.kind", "lss", "Did you mean 'ls'"),
    ],
)
def test_wrong_knobs_say_so_in_one_line(
    config: DictConfig, key: str, value: Any, message: str
) -> None:
    changed = copy.deepcopy(config)
    group, _, knob = key.rpartition(".")
    node = changed
    for part in group.split("."):
        node = node[part]
    node[knob] = value
    refuse(changed, message)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["model=mlp"], "MLP has no long skip connections"),
        (["model=mlp", "method=none"], "MLP does not predict noise"),
        (["model=uvit", "model.patch=3"], "model.patch=3 does not divide"),
        (["model=uvit", "model.width=20"], "no multiple of 2 x 8 heads"),
        (["model=ddpm_unet", "model.groups=7"], "model.groups=7 does not divide"),
        (["model=ddpm_unet", "model.multipliers=[1,1,1,1,1]"], "cannot be halved 4 times"),
    ],
)
def test_models_that_do_not_fit_say_so_in_one_line(typed: list[str], message: str) -> None:
    (run,) = plan_study(["paper=scalelong", "scale=smoke", "arm=org", "seed=0", *typed]).runs
    with torch.device("meta"):
        refuse(run.config, message)


def test_vectors_can_be_denoised_too(tmp_path: Path) -> None:
    typed = ["paper=scalelong", "scale=smoke", "arm=ls", "seed=0", "from=null", "dataset=wine"]
    run = create_study(plan_study(typed), tmp_path).runs[0]
    assert execute(run.folder) == Status.FINISHED
    assert run.summary()["test/loss"] > 0


def test_probes_need_the_theorys_network(tmp_path: Path) -> None:
    typed = ["paper=scalelong", "scale=smoke", "arm=org", "seed=0", *UVIT, "training.max_steps=1"]
    run = create_study(plan_study(typed), tmp_path).runs[0]
    assert execute(run.folder) == Status.FAILED
    assert "module.probes.depths" in run.record()["error"]["message"]
    assert run.record()["error"]["kind"] == "user"


def test_missing_data_are_one_clear_message(tmp_path: Path) -> None:
    typed = ["paper=scalelong", "scale=full", "arm=org", "seed=0", f"data.root={tmp_path}"]
    run = create_study(plan_study(typed), tmp_path / "outputs").runs[0]
    assert execute(run.folder) == Status.FAILED
    assert "cifar10" in run.record()["error"]["message"]
    assert run.record()["error"]["kind"] == "user"


def test_fid_of_equal_images_is_nought_and_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Pixels(nn.Module):
        """Features of a stand-in for the Inception network."""

        num_features = 4

        def forward(self, images: Tensor) -> Tensor:
            return images.float().flatten(2).mean(2).repeat(1, 4)[:, :4]

    images = torch.rand(64, 3, 8, 8) * 2 - 1
    device = torch.device("cpu")
    same = frechet_inception_distance([images], [images], device, Pixels())
    other = frechet_inception_distance([images], [images * 0.1], device, Pixels())
    assert abs(same) < 1e-3 < abs(other)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"repro\[fid\]"):
        frechet_inception_distance([images], [images], device)


def refuse(config: DictConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_module(config)
    assert len(str(caught.value).splitlines()) == 1
