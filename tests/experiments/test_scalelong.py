"""What is special to ScaleLong: the theory's networks, samples, and the same bits after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import stop_after, timeless, unplugged
from repro.experiments.scalelong import module as scalelong_module
from repro.experiments.scalelong.module import Denoising
from rooms import configs, finished, prepared, refusal, summaries

from repro.claims.outcomes import Verdict
from repro.claims.studies import judge_study
from repro.launching.local import run_study
from repro.methods.scalelong import SkipScaler
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.series import read_series
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module, execute

PAPER = load_paper("scalelong")
SMOKE = ["paper=scalelong", "scale=smoke"]
UVIT = ["model=uvit", "model.width=16", "model.heads=2", "model.n_skips=2"]
UNET = ["model=ddpm_unet", "model.width=8", "model.multipliers=[1,2]", "model.groups=4"]
NO_PROBES = ["module.probes.depths=[]"]


def test_only_the_baseline_is_compared_with_nothing(study: Study) -> None:
    for arm, summary in summaries(study).items():
        compared = {"compare/feature_ratio"}
        assert set(PAPER.report) - summary.keys() == (compared if arm == "org" else set())


def test_the_theory_is_measured_on_networks_that_all_arms_share(study: Study) -> None:
    org, const, cs, ls = (summaries(study)[arm] for arm in ("org", "const", "cs", "ls"))
    for depth in (2, 4, 8):
        prefix = f"init/n{depth}"
        assert org[f"{prefix}/grad_ratio"] == 1
        for other in (const, cs, ls):
            reference = other[f"{prefix}/grad_ratio"] * other[f"{prefix}/grad_norm"]
            assert reference == pytest.approx(org[f"{prefix}/grad_norm"], rel=1e-4)
    assert org["init/n8/gain"] > const["init/n8/gain"] > cs["init/n8/gain"]
    assert "init/n8/gain_over_theory" not in ls  # which knows no coefficients


def test_scaling_costs_no_parameters_worth_a_word(study: Study) -> None:
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert verdicts["C8"] is Verdict.SUPPORTED


def test_samples_are_kept(study: Study) -> None:
    (run,) = (run for run in study.runs if run.record().arm == "cs")
    square = np.load(run.folder / "artifacts" / "samples.npy")
    assert square.shape == (6 * 8, 6 * 8)
    assert (square.min(), square.max()) == (0, 1)


@pytest.mark.parametrize(("arm", "expected"), [("cs", {"training"}), ("ls_separate", set())])
def test_a_study_of_some_arms_draws_what_it_can(
    arm: str, expected: set[str], tmp_path: Path
) -> None:
    typed = [*SMOKE, f"arm={arm}", "seed=0", "from=null", *NO_PROBES]
    study = prepared(tmp_path, *typed, "module.sampling.pictures=0", "training.epochs=1")
    run_study(study)
    assert {path.stem for path in draw_study(study)} == expected


def test_arms_see_the_same_times_and_noises_and_start_alike(study: Study) -> None:
    modules: list[Any] = [build_module(run.config()) for run in study.runs]
    x0 = torch.zeros(3, 1, 8, 8)
    draws = [module._draws(x0, 1, 0, 0, 5) for module in modules]
    for time, noise in draws[1:]:
        assert torch.equal(time, draws[0][0])
        assert torch.equal(noise, draws[0][1])
    assert not torch.equal(modules[0]._draws(x0, 1, 0, 0, 6)[0], draws[0][0])


@pytest.mark.parametrize("scale", PAPER.scales)
def test_every_arm_scales_skips_at_its_rate(scale: str) -> None:
    for arm, config in configs("paper=scalelong", f"scale={scale}").items():
        with torch.device("meta"):
            module = build_module(config)
        assert isinstance(module, Denoising)
        model: Any = module.model
        assert isinstance(module.model.scaler, SkipScaler)
        if scale.startswith("mini"):
            assert config.optimizer.lr == config.rates[arm]
        if scale == "full":
            depth = 8 if arm.startswith("deep") else 6
            assert len(model.skip_features) == depth
            assert config.optimizer.lr == 2e-4
            assert config.training.max_steps == 500_000
        if (scale, arm) == ("full", "ls"):
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
    typed = [*SMOKE, f"arm={arm}", "seed=1", *small, *typed]
    straight, stopped = (prepared(tmp_path / name, *typed) for name in "ab")
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
        pictures = (np.load(each.folder / "artifacts" / "samples.npy") for each in (one, other))
        assert np.array_equal(*pictures)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("module.ema=1.5", "ema lies in [0, 1) or null"),
        ("module.monitor.every=0", "module.monitor.every is a whole number"),
        ("module.sampling.method=dpm", "module.sampling.method is ddim or euler_maruyama"),
        ("model.merge=sum", "model.merge is add or concat, not 'sum'"),
        ("method.kind=lss", "Did you mean 'ls'"),
        ("model=mlp method=none", "MLP does not predict noise"),
        ("model=uvit model.patch=3", "model.patch=3 does not divide"),
        ("model=uvit model.width=20", "no multiple of 2 x 8 heads"),
        ("model=ddpm_unet model.groups=7", "model.groups=7 does not divide"),
        ("model=ddpm_unet model.multipliers=[1,1,1,1,1]", "cannot be halved 4 times"),
        # Probes need the theory's network.
        (f"{' '.join(UVIT)} training.max_steps=1", "module.probes.depths"),
    ],
)
def test_what_cannot_work_is_one_line(typed: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMOKE, "arm=org", "seed=0", *typed.split())


def test_vectors_can_be_denoised_too(tmp_path: Path) -> None:
    run = finished(tmp_path, *SMOKE, "arm=ls", "seed=0", "from=null", "dataset=wine")
    assert run.summary()["test/loss"] > 0


def test_missing_data_are_one_clear_message(tmp_path: Path) -> None:
    typed = ["paper=scalelong", "scale=full", "arm=org", "seed=0", f"data.root={tmp_path}"]
    assert "cifar10" in refusal(tmp_path / "outputs", *typed, lines=3)


def test_the_full_scale_has_the_official_optimizer_and_sampler() -> None:
    for scale in ("full", "full_unet"):
        (config,) = configs("paper=scalelong", f"scale={scale}", "arm=org").values()
        assert list(config.optimizer.betas) == [0.99, 0.999]
        assert config.module.sampling.method == "euler_maruyama"


@pytest.fixture
def denoising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The room's module; what it logs is kept in ``logged``."""
    (config,) = configs(*SMOKE, "arm=org").values()
    module: Any = build_module(config)
    module.logged = {}
    monkeypatch.setattr(Denoising, "log_dict", lambda self, found: self.logged.update(found))
    monkeypatch.setattr(Denoising, "trainer", SimpleNamespace(world_size=1))
    return module


def test_monitored_norms_by_hand(denoising: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wild start the feature norm swings by 3 about 6.5, and the gradient norm rises.

    A moving average over three of 5, 8, 5, 8 … is off by a third of the swing and so leaves two.
    """
    feature = [900.0] * 10 + [5.0, 8.0] * 5
    gradient = [0.0] * 10 + [float(step) for step in range(10)]
    denoising.records = list(torch.tensor([feature, gradient]).T)
    denoising.monitor = {"every": 1, "settle": 0.5, "window": 3}
    denoising.baseline = torch.full((20, 2), 13.0)
    monkeypatch.setattr(denoising, "_probe_batch", lambda: (torch.zeros(1),) * 3)
    monkeypatch.setattr(scalelong_module, "sensitivity", lambda *_: 0.5)
    measured = denoising._monitored() | denoising._compared()
    assert measured == pytest.approx(
        {
            "monitor/feature_norm": 6.5,
            "monitor/feature_oscillation": 2,
            "monitor/grad_norm": 8.5,
            "monitor/grad_oscillation": 0,
            "monitor/sensitivity": 0.5,
            "compare/feature_ratio": 2,
        },
        abs=1e-6,
    )


def test_the_loss_is_the_mean_over_images_and_draws(
    denoising: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([torch.tensor([1.0, 3.0]), torch.tensor([5.0, 5.0])])
    monkeypatch.setattr(denoising, "_error", lambda *_: next(errors))
    denoising.on_validation_start()
    for _ in range(2):
        denoising.validation_step((torch.zeros(1, 1, 8, 8),), 0)
    denoising.log_measured()
    assert denoising.logged["val/loss"] == 3.5


@pytest.fixture
def asked(denoising: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What the network was asked, which predicts noises of 3 at all times; it is 1, at time 1/2."""
    seen: list[tuple[Any, Any]] = []

    def three(x_t: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        seen.append((x_t, time_B))
        return torch.full_like(x_t, 3.0)

    def draws(x0: torch.Tensor, *_: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(x0),), 0.5), torch.ones_like(x0)

    monkeypatch.setattr(Denoising, "denoiser", staticmethod(three))
    monkeypatch.setattr(denoising, "_draws", draws)
    denoising.time_scale = 1000.0
    return seen


def test_errors_are_squares_at_the_times_that_networks_take(denoising: Any, asked: Any) -> None:
    denoising.eval_draws = 3
    denoising.on_validation_start()
    denoising.evaluate((torch.zeros(2, 1, 8, 8),), 0)
    denoising.log_measured()
    assert denoising.logged["val/loss"] == (3 - 1) ** 2
    ((x_t, time_B),) = asked
    assert x_t.shape == (3 * 2, 1, 8, 8)
    assert time_B.tolist() == 6 * [500]


def test_samplers_and_probes_ask_at_the_same_times(denoising: Any, asked: Any) -> None:
    denoising._predict(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5))
    assert asked[0][1].tolist() == 2 * [500]
    denoising.first_test_batch, denoising.probes = torch.zeros(5, 1, 8, 8), {"batch": 3}
    _, time_B, _ = denoising._probe_batch()
    assert time_B.tolist() == 3 * [500]


def test_the_first_test_batch_is_kept(denoising: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "evaluate", lambda *_: None)
    for number in range(3):
        denoising.test_step((torch.tensor([float(number)]),), number)
    assert denoising.first_test_batch.tolist() == [0]


@pytest.mark.parametrize(
    ("method", "told"), [("ddim", {"limits": (-1, 2)}), ("euler_maruyama", {"to_zero": True})]
)
def test_each_sampler_is_told_where_it_ends(denoising: Any, method: str, told: Any) -> None:
    """DDIM stays within the values of the data."""
    sampler = SimpleNamespace(
        **{method: lambda _, shape, steps, generator, **others: (shape, steps, others)}
    )
    denoising.process = sampler
    denoising.sampling = {"method": method, "steps": 7}
    denoising.first_test_batch = torch.tensor([[-1.0, 0.0], [2.0, 1.0]])
    assert denoising._sample(4, 0) == ((4, 2), 7, told)


def test_pictures_are_real_ones_above_samples_in_units_of_their_range(
    denoising: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of five real ones, from -1 to 3, and six samples, the last of which is out of range."""
    kept: dict[Path, Any] = {}
    monkeypatch.setattr(np, "save", kept.__setitem__)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    around = SimpleNamespace(is_global_zero=True, default_root_dir="run")
    monkeypatch.setattr(Denoising, "trainer", around)
    levels = torch.tensor([-1.0, 0, 3, 1, 1])[:, None, None, None]
    denoising.first_test_batch = levels.expand(-1, 1, 2, 2)
    sampled = torch.tensor([0.0, 0, 1, 1, 2, 9])[:, None, None, None].expand(-1, 1, 2, 2)
    monkeypatch.setattr(denoising, "_sample", lambda count, _: {6: sampled}[count])
    denoising.sampling = {"pictures": 3}
    denoising._draw_samples()
    square = kept[Path("run/artifacts/samples.npy")]
    assert square.shape == (6, 6)
    shown = [[0, 0.25, 1], [0.25, 0.25, 0.5], [0.5, 0.75, 1]]
    assert square[::2, ::2].tolist() == square[1::2, 1::2].tolist() == shown


def test_the_scaler_is_counted_on_the_papers_network() -> None:
    arms = configs(*SMOKE, "arm=[ls,cs]")
    ls, cs = (build_module(arms[arm])._counted() for arm in ("ls", "cs"))  # type: ignore[operator]
    assert ls["scaler/paper_parameters"] == 8497
    assert ls["scaler/paper_share"] == pytest.approx(8497 / 44_255_328)
    assert cs["scaler/paper_parameters"] == cs["scaler/paper_share"] == 0


def test_samples_are_compared_with_training_images(
    denoising: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID of two batches of samples, of 500 and of what is left, against what is trained on."""
    seen: list[Any] = []

    def distance(reals: Any, fakes: Any, device: torch.device) -> float:
        seen.extend([list(reals), list(fakes)])
        return 7.0

    monkeypatch.setattr(scalelong_module, "frechet_inception_distance", distance)
    monkeypatch.setattr(denoising, "_sample", lambda count, number: (count, number))
    denoising.data = SimpleNamespace(train_dataloader=lambda: [(torch.ones(2),), (torch.ones(1),)])
    denoising.sampling = {"fid_samples": 600}
    assert denoising._fid() == 7
    reals, fakes = seen
    assert [len(images) for images in reals] == [2, 1]
    assert fakes == [(500, 1), (100, 2)]
    for part in ("_monitored", "_compared", "_probed", "_counted"):
        monkeypatch.setattr(denoising, part, dict)
    monkeypatch.setattr(denoising, "_draw_samples", lambda: None)
    monkeypatch.setattr(
        Denoising, "log", lambda self, name, value: self.logged.update({name: value})
    )
    denoising.on_test_start()
    seen.clear()
    denoising.on_test_epoch_end()
    assert denoising.logged["test/fid"] == 7
