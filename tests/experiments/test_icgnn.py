"""What is special to ICGNN: what its numbers mean, and sizes that a network has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from interruptions import same_after_a_kill
from rooms import configs, refusal, summaries

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.methods.icgnn import CellFree, Downlink
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("icgnn")


def test_no_arm_sends_more_than_it_may(study: Study) -> None:
    found = summaries(study)
    for arm in ("rzf_cg8", "wmmse", "icgnn_cg8", "icgnn_power", "max_min"):
        assert set(PAPER.report) <= found[arm].keys()
        assert found[arm]["test/power_error"] < 1e-5
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert verdicts["C6"] is Verdict.SUPPORTED


def test_the_reference_is_itself_and_measured_like_the_others(study: Study) -> None:
    found = summaries(study)["wmmse"]
    assert found["test/relative_se/seen"] == pytest.approx(1, abs=1e-6)
    assert found["test/savings/seen"] == pytest.approx(1)
    assert found["test/savings_equal_se/seen"] == pytest.approx(1)
    assert found["test/iterations_to_match/8x8_10dB"] == 5  # all that scale=smoke has
    assert found["test/solves"] > 0
    icgnn = summaries(study)["icgnn_cg8"]
    assert icgnn["test/solves"] == 0
    at_eight = icgnn["test/relative_se_at/8/8x8_10dB"]
    assert at_eight == pytest.approx(icgnn["test/relative_se/8x8_10dB"], rel=1e-6)


def test_a_perceptron_is_tested_at_its_own_size_alone(study: Study) -> None:
    found = summaries(study)["mlp_fixed"]
    sizes = {name for name in found if name.startswith("test/se/")}
    assert sizes == {f"test/se/{size}" for size in
                     ("8x8_10dB", "8x8_20dB", "8x16_10dB", "8x16_20dB", "seen")}  # fmt: skip
    assert found["test/permutation_error"] > 1e-6


@pytest.mark.parametrize("scale", ["smoke", "full"])
def test_every_arm_solves_the_problem_of_its_data(scale: str) -> None:
    for config in configs("paper=icgnn", f"scale={scale}").values():
        module: Any = build_module(config)
        problem = module.model.problem
        assert problem is {"cellular": Downlink, "cellfree": CellFree}[config.dataset.kind]


def test_full_has_the_papers_sizes() -> None:
    runs = configs("paper=icgnn", "scale=full", "arm=[rzf,icgnn_power,icgnn_cg4]")
    assert runs["rzf"].dataset.cellular.antennas == 128
    assert runs["icgnn_power"].model.width == runs["icgnn_cg4"].model.width == 64


@pytest.mark.parametrize("arm", ["icgnn_cg8", "icgnn_power"])
def test_a_run_killed_in_its_second_epoch_ends_with_the_same_numbers(
    arm: str, tmp_path: Path
) -> None:
    typed = ["dataset.cellular.eval_size=4", "dataset.cellfree.eval_size=4", "module.cg_steps=[2]"]
    same_after_a_kill(tmp_path, 7, "paper=icgnn", "scale=smoke", f"arm={arm}", "seed=0", *typed)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("scale=smoke model.width=0", "model.width"),
        ("scale=smoke model.kind=cellfree", "LearnedPower does not fit dataset.kind=cellular"),
        ("model.kind=cellular dataset=digits", "simulates its channels: dataset=wireless"),
        ("scale=smoke module.timed.cellular=[9x9]", "9x9, which is not tested"),
    ],
)
def test_a_bad_knob_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    refused = refusal(tmp_path, "paper=icgnn", "arm=icgnn_cg8", "seed=0", *typed.split())
    assert complaint in refused
