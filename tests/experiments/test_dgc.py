"""The room of Deep Gradient Compression, at scale=smoke and by composition at the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from repro.experiments.dgc.module import counted_ratio, sent_bytes

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.launching.local import run_study
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module

PAPER = load_paper("dgc")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The whole study at scale=smoke, run once for all tests here."""
    plan = plan_study(["paper=dgc", "scale=smoke", "n_jobs=1"])
    made = create_study(plan, tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


def test_every_arm_finishes_and_reports_its_metrics(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    for run in study.runs:
        assert set(PAPER.report) <= run.summary().keys()


def test_smoke_is_judged_and_the_rest_says_where_it_can_be(study: Study) -> None:
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C1"].verdict != Verdict.NOT_AT_SCALE
    assert verdicts["C4"].verdict == Verdict.NOT_AT_SCALE
    assert "full_imagenet" in verdicts["C4"].reason


def test_the_figure_is_written_as_png_and_svg(study: Study) -> None:
    written = draw_study(study)
    assert [path.name for path in written] == ["traffic.png", "traffic.svg"]
    assert all(path.stat().st_size > 10_000 for path in written)


def test_compressed_arms_send_less_than_the_dense_one(study: Study) -> None:
    sent = {run.record()["arm"]: run.summary()["comm/bytes_per_step"] for run in study.runs}
    dense = sent.pop("dense")
    assert all(bytes_ < dense for bytes_ in sent.values())


def test_momentum_is_at_the_receiver_or_in_the_method_but_never_in_both() -> None:
    for arm in ("dgc", "dropping"):
        config = plan_study(["paper=dgc", "scale=smoke", f"arm={arm}", "seed=0"]).runs[0].config
        module = build_module(config)
        module.method.attach(module.model)
        optimizer = module.method.optimizer(module.model, module.optimizer_factory)
        local = module.method.memory.momentum
        assert sorted([local, optimizer.param_groups[0]["momentum"]]) == [0, 0.9]


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [("full", 1_727_962), ("full_imagenet", 25_557_032), ("full_ptb", 66_034_000)],
)
def test_full_scales_build_the_published_models(scale: str, parameters: int) -> None:
    config = plan_study(["paper=dgc", f"scale={scale}", "arm=dgc", "seed=0"]).runs[0].config
    with torch.device("meta"):
        module = build_module(config)
    assert sum(p.numel() for p in module.model.parameters()) == parameters


def test_published_compression_ratios_follow_from_shapes_alone() -> None:
    # ResNet-50: 25,502,912 weights, 54,120 others; AlexNet: 60,954,656 weights, 10,568 others.
    assert counted_ratio("resnet50", 0.001) == pytest.approx(277, abs=1.5)
    assert counted_ratio("alexnet", 0.001) == pytest.approx(597, abs=1.5)


def test_sent_bytes_of_a_layer_by_hand() -> None:
    # 30 weights at density 0.1: 3 entries of 6 bytes; 3 biases of 4 bytes.
    assert sent_bytes(torch.nn.Linear(10, 3), 0.1) == 3 * 6 + 3 * 4


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method.ratio=0", "method.ratio"),
        ("method.ratio=2", "method.ratio"),
        ("method.selector=exakt", "Did you mean 'exact'"),
        ("method.encoding=fp8", "method.encoding"),
        ("method.workers=0", "method.workers"),
        ("method.momentum=1", "method.momentum"),
    ],
)
def test_a_bad_knob_fails_the_run_in_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    plan = plan_study(["paper=dgc", "scale=smoke", "arm=dgc", "seed=0", typed])
    study = create_study(plan, tmp_path)
    run_study(study)
    error = study.runs[0].record()["error"]
    assert error["kind"] == "user"
    assert complaint in error["message"]
    assert "\n" not in error["message"]
