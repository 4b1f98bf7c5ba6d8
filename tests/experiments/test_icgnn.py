"""What is special to ICGNN: what its numbers mean, and sizes that a network has not seen."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.icgnn import module as icgnn_module
from rooms import configs, evaluated, logged, refusal, summaries
from torch import Tensor, nn

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
        assert found[arm]["test/permutation_error"] < 1e-8


def test_the_reference_is_itself_and_measured_like_the_others(study: Study) -> None:
    found = summaries(study)["wmmse"]
    assert found["test/relative_se/seen"] == pytest.approx(1, abs=1e-6)
    assert found["test/savings/seen"] == pytest.approx(1)
    assert found["test/savings_equal_se/seen"] == pytest.approx(1)
    assert found["test/iterations_to_match/8x8_10dB"] == 3  # all that scale=smoke has
    assert found["test/solves"] > 0
    icgnn = summaries(study)["icgnn_cg8"]
    assert icgnn["test/solves"] == 0
    at_eight = icgnn["test/relative_se_at/8/8x8_10dB"]
    assert at_eight == pytest.approx(icgnn["test/relative_se/8x8_10dB"], rel=1e-6)


def test_a_perceptron_is_tested_at_its_own_size_alone(study: Study) -> None:
    found = summaries(study)["mlp_fixed"]
    sizes = {name for name in found if name.startswith("test/se/")}
    assert sizes == {"test/se/8x8_10dB", "test/se/seen"}
    assert found["test/permutation_error"] > 1e-6


def test_every_arm_solves_the_problem_of_its_data_at_full_size() -> None:
    runs = configs("paper=icgnn", "scale=full")
    for config in runs.values():
        module: Any = build_module(config)
        problem = module.model.problem
        assert problem is {"cellular": Downlink, "cellfree": CellFree}[config.dataset.kind]
    assert runs["rzf"].dataset.cellular.antennas == 128
    assert runs["icgnn_power"].model.width == runs["icgnn_cg4"].model.width == 64


@pytest.mark.parametrize("arm", ["icgnn_cg8", "icgnn_power"])
def test_a_run_killed_in_its_second_epoch_ends_the_same(arm: str, tmp_path: Path) -> None:
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


@pytest.fixture
def module() -> Any:
    """The room's module in a cell of its own."""
    (config,) = configs("paper=icgnn", "scale=smoke", "arm=rzf_cg8").values()
    built: Any = build_module(config)
    built.data = SimpleNamespace(problem=Downlink, name="cellular", test_cells=[])
    return built


def test_means_over_sizes_by_hand(module: Any) -> None:
    sizes = {"a": True, "b": True, "c": False}
    module.data.test_cells = [SimpleNamespace(name=n, seen=seen) for n, seen in sizes.items()]
    module.table = {
        "test/se": {"a": 2.0, "b": 8.0, "c": 5.0},
        "test/relative_se": {"a": 0.9, "b": 0.7, "c": 0.6},
        "test/relative_se_at/4": {"a": 0.5, "b": 0.3},
        "test/savings": {"a": 1.0, "b": 4.0, "c": 9.0},
        "test/savings_equal_se": {"a": 2.0, "b": 0.5},
        "test/permutation_error": {"a": 1e-9, "b": 3e-9, "c": 2e-9},
        "test/solves": {"a": 0.0, "b": 0.0, "c": 2.0},
        "time/speedup": {"a": 2.0, "c": 8.0},
        "time/speedup_equal_se": {"a": 0.5, "c": 2.0},
    }
    found = logged(module, module.on_test_epoch_end)
    expected = {
        "test/se/seen": 4,  # of rates and ratios the geometric mean
        "test/se/unseen": 5,
        "test/relative_se/seen": 0.8,
        "test/relative_se/unseen": 0.6,
        "test/relative_se_at/4/seen": 0.4,
        "test/savings/seen": 2,
        "test/savings_equal_se/seen": 1,
        "test/permutation_error": 3e-9,  # of errors and solves the largest
        "test/solves": 2,
        "time/speedup": 4,
        "time/speedup_equal_se": 1,
        "test/se/b": 8,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


class Beam(nn.Module):
    """Sends to the first user in the best direction, at a part of the power."""

    problem = Downlink
    cg_steps = 8

    def forward(self, batch: Downlink) -> Tensor:
        """Half of the power; all of it with four steps."""
        channel_BM = batch.H[:, 0, 0]
        beam_BM = channel_BM.conj() / channel_BM.norm(dim=-1, keepdim=True)
        beams_BMS = torch.stack([beam_BM, torch.zeros_like(beam_BM)], -1)
        return beams_BMS * (1 if self.cg_steps == 4 else 0.5) ** 0.5


def test_a_single_user_meets_the_capacity(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """|h|² = 25 at a ratio of one: log2(26) bits, log2(13.5) at half of the power.

    In two equal cells, each with a second user, who hears nothing: one iteration of WMMSE is more
    than enough for that; the whole reference takes three.
    """

    def counted(function: Any, *arguments: Any) -> SimpleNamespace:
        if isinstance(function, nn.Module):
            return SimpleNamespace(multiplications=50, solves={"inv": 2, "solve": 1})
        return SimpleNamespace(multiplications=40 + 60 * arguments[-1], solves={})

    monkeypatch.setattr(icgnn_module, "count_operations", counted)
    times = {"own": 2.0, "": 6.0, "_equal_se": 1.0}
    monkeypatch.setattr(icgnn_module, "median_seconds", lambda runs, passes: times)
    module.data.test_cells = [SimpleNamespace(name="one", seen=True)]
    module.model, module.is_learned, module.cg_steps = Beam(), False, (4,)
    module.reference = {"iterations": 3, "start": "rzf"}
    module.timed = {"cellular": ["one"]}
    cell = torch.tensor([[3.0 + 0.0j, 4.0j], [0.0j, 0.0j]], dtype=torch.complex64)
    batch = Downlink.of(cell.expand(2, 2, 2), 1.0)
    assert float(module.loss(batch)) == pytest.approx(-math.log2(13.5) / 2)  # of a user
    found = evaluated(module, [batch])
    expected = {
        "test/se/seen": math.log2(13.5),
        "test/min_se/seen": 0,
        "test/multiplications/one": 50 / 2,  # for one channel
        "test/relative_se/seen": math.log2(13.5) / math.log2(26),
        "test/relative_se_at/4/seen": 1,
        "test/solves": 3,
        "test/savings/seen": (40 + 3 * 60) / 50,
        "test/savings_equal_se/seen": (40 + 60) / 50,
        "test/iterations_to_match/one": 1,
        "test/power_error": 0.5,
        "time/speedup": 3,
        "time/speedup_equal_se": 0.5,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
