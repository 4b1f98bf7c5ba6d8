"""What is special to Deep Gradient Compression: what is sent, and who keeps the momentum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from repro.experiments.dgc.module import counted_ratio, sent_bytes
from rooms import configs, refusal, summaries

from repro.claims.studies import judge_study
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("dgc")


def test_compressed_arms_send_less_than_the_dense_one(study: Study) -> None:
    sent = {arm: summary["comm/bytes_per_step"] for arm, summary in summaries(study).items()}
    dense = sent.pop("dense")
    assert all(bytes_ < dense for bytes_ in sent.values())


def test_what_smoke_cannot_test_says_where_it_can_be(study: Study) -> None:
    (verdict,) = (verdict for verdict in judge_study(study) if verdict.id == "C4")
    assert "full_imagenet" in verdict.reason


def test_momentum_is_at_the_receiver_or_in_the_method_but_never_in_both() -> None:
    for config in configs("paper=dgc", "scale=smoke", "arm=[dgc,dropping]").values():
        module: Any = build_module(config)
        module.method.attach(module.model)
        optimizer = module.method.optimizer(module.model, module.optimizer_factory)
        local = module.method.memory.momentum
        assert sorted([local, optimizer.param_groups[0]["momentum"]]) == [0, 0.9]


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [("full", 1_727_962), ("full_imagenet", 25_557_032), ("full_ptb", 66_034_000)],
)
def test_full_scales_build_the_published_models(scale: str, parameters: int) -> None:
    (config,) = configs("paper=dgc", f"scale={scale}", "arm=dgc").values()
    with torch.device("meta"):
        module: Any = build_module(config)
    assert sum(p.numel() for p in module.model.parameters()) == parameters


def test_published_compression_ratios_follow_from_shapes_alone() -> None:
    # ResNet-50: 25,502,912 weights, 54,120 others; AlexNet: 60,954,656 weights, 10,568 others.
    assert counted_ratio("resnet50", 0.001) == pytest.approx(277, abs=1.5)
    assert counted_ratio("alexnet", 0.001) == pytest.approx(597, abs=1.5)


def test_sent_bytes_of_a_layer_by_hand() -> None:
    # 30 weights at density 0.1: 3 entries of 6 bytes; 3 biases of 4 bytes.
    assert sent_bytes(torch.nn.Linear(10, 3), 0.1) == 3 * 6 + 3 * 4


def test_a_misspelt_selector_is_one_line(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dgc", "seed=0", "method.selector=exakt"]
    assert "Did you mean 'exact'" in refusal(tmp_path, *typed)
