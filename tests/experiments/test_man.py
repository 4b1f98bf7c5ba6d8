"""What is special to the Momentum Auxiliary Network: cuts, peak memory, sums of digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import same_after_a_kill
from omegaconf import DictConfig
from repro.experiments.man.module import LocalTraining
from rooms import configs, evaluated, finished, refusal, summaries
from torch import nn

from repro.methods.man import LocalLearning
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("man")
SMOKE = ["paper=man", "scale=smoke"]
SIZES = {"train": 6000, "val": 1000, "test": 1500}


def attached(config: DictConfig) -> LocalTraining:
    module = build_module(config)
    assert isinstance(module, LocalTraining)
    module.method.attach(module.model)
    return module


def test_every_arm_reports_all_its_metrics(study: Study) -> None:
    found = summaries(study)
    for summary in found.values():
        # End-to-end training has no auxiliary nets.
        assert set(PAPER.report) - {"local/auxiliary_parameters"} <= summary.keys()
    assert found["dgl"]["memory/peak_mb"] < found["bp"]["memory/peak_mb"]


def test_accuracy_is_the_share_of_right_examples_whatever_their_batch() -> None:
    """Two of three, then one of one."""
    module = build_module(configs("paper=man", "scale=mini")["bp"])
    assert isinstance(module, LocalTraining)
    module.model = nn.Identity()
    batches = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3)[:1], torch.tensor([0]))]
    assert evaluated(module, batches)["test/accuracy"] == pytest.approx(3 / 4)


def test_every_arm_attaches() -> None:
    """All at mini; what an arm says holds at the full scales too, which are composed below."""
    runs = configs("paper=man", "scale=mini")
    assert list(runs) == list(PAPER.arms)
    assert runs["bp"].dataset.pairs == SIZES
    for arm, config in runs.items():
        assert config.optimizer.lr == config.rates[arm]
        with torch.device("meta"):
            attached(config)


@pytest.mark.parametrize("scale", ["full_stl10", "full_memory"])
def test_the_other_data_sets_have_the_shape_that_the_method_expects(scale: str) -> None:
    (config,) = configs("paper=man", f"scale={scale}", "arm=dgl_man").values()
    dataset = config.dataset
    assert instantiate(dataset).input_shape == tuple(config.method.input_shape)
    # A sample without some of its classes is refused.
    assert dataset.get("train_size", dataset.classes) >= dataset.classes


def test_a_missing_data_set_is_one_clear_message(tmp_path: Path) -> None:
    typed = ["paper=man", "scale=full_svhn", "arm=bp", "seed=0", f"data.root={tmp_path}"]
    assert "svhn" in refusal(tmp_path / "outputs", *typed, lines=3)


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
    (config,) = configs("paper=man", f"scale={scale}", "arm=infopro").values()
    with torch.device("meta"):
        module = attached(config)
    assert isinstance(module.method, LocalLearning)
    assert sum(p.numel() for p in module.model.parameters()) == parameters
    assert len(module.method.blocks) == blocks
    assert config.method.momentum == 0.995


def test_peak_memory_depends_on_no_seed_length_or_kill(study: Study, tmp_path: Path) -> None:
    typed = [*SMOKE, "arm=dgl_man", "seed=1", "training.epochs=2"]
    killed = same_after_a_kill(tmp_path, 3, *typed).summary()
    assert killed["memory/peak_mb"] > killed["memory/kept_mb"] > 0
    assert killed["memory/peak_mb"] == summaries(study)["dgl_man"]["memory/peak_mb"]


def test_a_misspelt_loss_is_one_line(tmp_path: Path) -> None:
    refused = refusal(tmp_path, *SMOKE, "arm=dgl_man", "seed=0", "method.loss=infoprop")
    assert "Did you mean 'infopro'" in refused


def test_other_methods_train_in_this_room(tmp_path: Path) -> None:
    run = finished(tmp_path, *SMOKE, "arm=dgl_man", "seed=0", "method=dense")
    assert run.summary()["memory/peak_mb"] > 0


def test_sums_of_digits_share_no_digit_between_splits() -> None:
    splits = instantiate(configs("paper=man", "scale=mini", "arm=bp")["bp"].dataset).splits
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
