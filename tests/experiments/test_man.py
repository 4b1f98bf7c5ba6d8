"""The room of the Momentum Auxiliary Network, at scale=smoke and by composition at the others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import stop_after, timeless
from omegaconf import DictConfig
from repro.experiments.man.module import LocalTraining

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.methods.man import LocalLearning
from repro.planning.instantiate import instantiate
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.training.execute import build_module, execute

PAPER = load_paper("man")
SIZES = {"train": 6000, "val": 1000, "test": 1500}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """All arms of scale=smoke, run once for all tests here."""
    plan = plan_study(["paper=man", "scale=smoke", "seed=0", "n_jobs=1"])
    made = create_study(plan, tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """One run at scale=smoke."""
    return plan_study(["paper=man", "scale=smoke", "arm=dgl_man", "seed=0"]).runs[0].config


def test_every_arm_finishes_and_reports_its_metrics(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    for run in study.runs:
        # End-to-end training has no auxiliary nets.
        expected = set(PAPER.report) - {"local/auxiliary_parameters"}
        assert expected <= run.summary().keys()


def test_smoke_is_judged_and_the_rest_says_where_it_can_be(study: Study) -> None:
    verdicts = {verdict.id: verdict for verdict in judge_study(study)}
    assert verdicts["C1"].verdict == Verdict.SUPPORTED
    assert verdicts["C6"].verdict == Verdict.NOT_AT_SCALE


def test_figures_are_written_as_png_and_svg(study: Study) -> None:
    names = [path.name for path in draw_study(study)]
    assert names == ["accuracy.png", "accuracy.svg", "memory.png", "memory.svg"]


def test_every_arm_composes_and_attaches() -> None:
    """All at mini; what an arm says holds at the full scales too, which are composed below."""
    runs = plan_study(["paper=man", "scale=mini", "seed=0"]).runs
    assert [run.arm for run in runs] == list(PAPER.arms)
    assert runs[0].config.dataset.pairs == SIZES
    for run in runs:
        assert run.config.optimizer.lr == run.config.rates[run.arm]
        with torch.device("meta"):
            attached(run.config)


@pytest.mark.parametrize("scale", ["full_stl10", "full_memory"])
def test_the_other_data_sets_compose(scale: str) -> None:
    (run,) = plan_study(["paper=man", f"scale={scale}", "arm=dgl_man", "seed=0"]).runs
    dataset = run.config.dataset
    assert instantiate(dataset).input_shape == tuple(run.config.method.input_shape)
    # A sample without some of its classes is refused.
    assert dataset.get("train_size", dataset.classes) >= dataset.classes


def test_a_missing_data_set_is_one_clear_message(tmp_path: Path) -> None:
    typed = ["paper=man", "scale=full_svhn", "arm=bp", "seed=0", f"data.root={tmp_path}"]
    run = create_study(plan_study(typed), tmp_path / "outputs").runs[0]
    assert execute(run.folder) == Status.FAILED
    assert "svhn" in run.record()["error"]["message"]
    assert run.record()["error"]["kind"] == "user"


@pytest.mark.parametrize(
    ("scale", "parameters", "blocks"),
    [
        ("full", 464_154, 15),
        ("full_resnet110", 1_727_962, 54),
        ("full_imagenet", 44_549_160, 2),
        ("full_resnet152", 60_192_808, 2),
        ("full_resnext101", 88_791_336, 2),
    ],
)
def test_the_papers_networks_and_blocks(scale: str, parameters: int, blocks: int) -> None:
    (run,) = plan_study(["paper=man", f"scale={scale}", "arm=infopro", "seed=0"]).runs
    with torch.device("meta"):
        module = attached(run.config)
    assert isinstance(module.method, LocalLearning)
    assert sum(p.numel() for p in module.model.parameters()) == parameters
    assert len(module.method.blocks) == blocks
    assert run.config.method.momentum == 0.995


def test_a_run_stopped_midway_ends_with_the_same_numbers(study: Study, tmp_path: Path) -> None:
    typed = ["paper=man", "scale=smoke", "arm=dgl_man", "seed=1", "training.epochs=2"]
    plan = plan_study(typed)
    straight, stopped = (create_study(plan, tmp_path / name).runs[0] for name in ("a", "b"))
    assert execute(straight.folder) == Status.FINISHED

    # One epoch of a two-epoch plan: what a kill between the epochs leaves behind.
    stop_after(3, stopped)
    assert execute(stopped.folder) == Status.FINISHED
    first, second = timeless(straight), timeless(stopped)
    assert json.dumps(first) == json.dumps(second)
    assert first["memory/peak_mb"] > first["memory/kept_mb"] > 0
    # Of another seed and length, yet the same to the byte.
    (other,) = (run for run in study.runs if run.record()["arm"] == "dgl_man")
    assert first["memory/peak_mb"] == other.summary()["memory/peak_mb"]


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("modules", 9, "method.modules lies between 1 and"),
        ("loss", "infoprop", "Did you mean 'infopro'"),
        ("momentum", 2, "momentum lies in"),
        ("head", "conv", "method.head is like 1c2f"),
    ],
)
def test_wrong_knobs_say_so_in_one_line(
    config: DictConfig, knob: str, value: Any, message: str
) -> None:
    changed = copy.deepcopy(config)
    changed.method[knob] = value
    refuse(changed, message)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["model=mlp", "method.head=1c1f"], "features are vectors"),
        (["model=alexnet", "dataset.input_shape=[1,64,64]"], "cannot cut AlexNet"),
    ],
)
def test_models_that_cannot_be_cut_say_so_in_one_line(typed: list[str], message: str) -> None:
    (run,) = plan_study(["paper=man", "scale=smoke", "arm=dgl_man", "seed=0", *typed]).runs
    with torch.device("meta"):
        refuse(run.config, message)


def attached(config: DictConfig) -> LocalTraining:
    module = build_module(config)
    assert isinstance(module, LocalTraining)
    module.method.attach(module.model)
    return module


def refuse(config: DictConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        attached(config)
    assert len(str(caught.value).splitlines()) == 1


def test_other_methods_train_in_this_room(tmp_path: Path) -> None:
    typed = ["paper=man", "scale=smoke", "arm=dgl_man", "seed=0", "method=dense"]
    run = create_study(plan_study(typed), tmp_path).runs[0]
    assert execute(run.folder) == Status.FINISHED
    assert run.summary()["memory/peak_mb"] > 0


def test_sums_of_digits_share_no_digit_between_splits(config: DictConfig) -> None:
    dataset = copy.deepcopy(config.dataset)
    dataset.pairs = SIZES
    splits = instantiate(dataset).splits
    assert {name: len(x) for name, (x, _) in splits.items()} == SIZES
    halves = {
        name: {half.numpy().tobytes() for half in torch.cat(x[:, 0].split(8, dim=2))}
        for name, (x, _) in splits.items()
    }
    assert not halves["train"] & halves["test"]
    assert not halves["train"] & halves["val"]
    assert not halves["val"] & halves["test"]
    # All classes about equally often: nothing to gain from guessing.
    assert splits["test"][1].bincount().min() > 0.15 * 1500
