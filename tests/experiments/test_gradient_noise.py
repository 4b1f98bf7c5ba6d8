"""The room of gradient noise, at scale=smoke and by composition at the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import stop_after, timeless

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module, execute_here

PAPER = load_paper("gradient_noise")
TINY = ["model.depth=3", "model.width=8", "model.members=2", "training.val_every=1"]


def prepared(folder: Path, *typed: str) -> Study:
    return create_study(plan_study(["paper=gradient_noise", "n_jobs=1", *typed]), folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The whole study at scale=smoke, run once for all tests here."""
    made = prepared(tmp_path_factory.mktemp("outputs"), "scale=smoke")
    run_study(made)
    return made


@pytest.mark.parametrize("scale", list(PAPER.scales))
def test_every_arm_composes_and_none_equals_another(scale: str) -> None:
    assert not plan_study(["paper=gradient_noise", f"scale={scale}", "seed=0"]).notes


def test_every_arm_finishes_and_reports_its_metrics(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    for run in study.runs:
        assert set(PAPER.report) <= run.summary().keys()


def test_what_smoke_cannot_test_says_where_it_can_be(study: Study) -> None:
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["G1"].verdict == Verdict.NOT_AT_SCALE
    assert "mini_neural_gpu" in verdicts["G7"].reason


def test_the_figure_is_written_as_png_and_svg(study: Study) -> None:
    written = draw_study(study)
    assert [path.name for path in written] == ["escape.png", "escape.svg"]
    assert all(path.stat().st_size > 10_000 for path in written)


def test_arms_differ_in_noise_alone(study: Study) -> None:
    runs = {(run.record()["arm"], run.record()["seed"]): run.config() for run in study.runs}
    plain, noisy = (build_module(runs[arm, 1]) for arm in ("simple", "simple_noise"))
    assert plain.method.std == 0 < noisy.method.std
    starts = []
    for arm in ("simple", "simple_noise"):
        torch.manual_seed(1)
        model = build_module(runs[arm, 1]).model
        starts.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*starts)


def test_from_zero_only_class_frequencies_are_learnt(study: Study) -> None:
    (run,) = (r for r in study.runs if (r.record()["arm"], r.record()["seed"]) == ("zero", 0))
    assert run.summary()["train/loss"] == pytest.approx(2.3026, abs=0.01)
    assert run.summary()["test/share_above_0.5"] == 0


@pytest.mark.parametrize(
    ("scale", "arm", "parameters"),
    [
        # Per network: 784-50-(19 x 50)-10 with biases; (3 + 1) tables of words and of ages.
        ("full", "zero", 39_250 + 19 * 2_550 + 510),
        ("full_babi", "babi", 4 * 50 * (195 + 50)),
        ("full_neural_gpu", "neural_gpu", 2 * 3 * (24 * 24 * 9 + 24) + 4 * 24 + 24 * 4 + 4),
    ],
)
def test_full_scales_build_the_papers_models(scale: str, arm: str, parameters: int) -> None:
    config = plan_study(["paper=gradient_noise", f"scale={scale}", f"arm={arm}", "seed=0"])
    with torch.device("meta"):
        module = build_module(config.runs[0].config)
    members = module.model.members
    assert sum(p.numel() for p in module.model.parameters()) == members * parameters


@pytest.mark.parametrize(
    "typed",
    [
        ["arm=dropout", "optimizer.lr=0.3", "method.schedule=poly", *TINY],
        ["arm=dropout", "optimizer.lr=0.3", "method.schedule=error_scaled", *TINY],
        ["arm=memory_two_stage_noise", "model.network.linear_epochs=2", "model.members=2"],
    ],
)
def test_an_interrupted_run_ends_with_the_numbers_of_a_straight_one(
    tmp_path: Path, typed: list[str]
) -> None:
    typed = [*typed, "seed=0", "training.epochs=3"]
    straight, stopped = prepared(tmp_path / "a", *typed), prepared(tmp_path / "b", *typed)
    assert execute_here(straight.runs[0]) == Status.FINISHED
    stop_after(57, stopped.runs[0])  # within an epoch of 40, or of 20, steps
    assert execute_here(stopped.runs[0]) == Status.FINISHED
    assert timeless(stopped.runs[0]) == timeless(straight.runs[0])


def test_a_network_that_diverges_does_not_disturb_the_others(tmp_path: Path) -> None:
    plan = plan_study(["paper=gradient_noise", "scale=smoke", "arm=simple", "seed=0"])
    module = build_module(plan.runs[0].config)
    with torch.no_grad():
        module.model.weights[0][0] = torch.inf
    batch = (torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
    module._trainer = None
    module.method.attach(module.model)
    losses = module.losses(module.model(batch[0]), batch[1])
    assert not losses[0].isfinite()
    assert losses[1].isfinite()
    right = module._right(module.model(batch[0]), batch[1])
    assert not right[0].any()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["method=none"], "method.schedule=none"),
        (["model=mlp"], "choose model=stacked_mlp"),
        (["model.init=hee"], "Did you mean 'he'"),
        (["method.eta=-1"], "method.eta"),
        (["model=memory_network"], "dataset=babi_like"),
        (["training.clip_norm=0"], "clip_norm"),
    ],
)
def test_what_cannot_work_is_one_line(typed: list[str], message: str) -> None:
    plan = plan_study(["paper=gradient_noise", "arm=simple_noise", "seed=0", *typed])
    with pytest.raises(UserError, match=message) as caught:
        build_module(plan.runs[0].config)
    assert "\n" not in str(caught.value)


def test_missing_babi_is_one_clear_line(tmp_path: Path) -> None:
    typed = ["scale=full_babi", "arm=babi", "seed=0", "hardware=cpu", f"data.root={tmp_path}/hf"]
    run = prepared(tmp_path, *typed).runs[0]
    assert execute_here(run) == Status.FAILED
    error = run.record()["error"]
    assert error["kind"] == "user"
    assert "qa1_*_train.txt" in error["message"]


def test_the_noise_works_in_another_room(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "method=gradient_noise", "seed=0", "n_jobs=1"]
    made = create_study(plan_study(typed), tmp_path)
    assert execute_here(made.runs[0]) == Status.FINISHED
    assert made.runs[0].summary()["noise/std"] > 0
