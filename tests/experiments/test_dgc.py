"""What is special to Deep Gradient Compression: what is sent, and who keeps the momentum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from repro.experiments.dgc.module import sent_bytes
from rooms import configs, evaluated, refusal, summaries

from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module
from repro.training.supervised import TASKS

PAPER = load_paper("dgc")


def test_compressed_arms_send_less_than_the_dense_one(study: Study) -> None:
    sent = {arm: summary["comm/bytes_per_step"] for arm, summary in summaries(study).items()}
    dense = sent.pop("dense")
    assert all(bytes_ < dense for bytes_ in sent.values())


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


def test_the_authors_later_recipe() -> None:
    runs = configs("paper=dgc", "scale=full_imagenet_official")
    assert list(runs) == ["dense", "dgc"]
    method = runs["dgc"].method
    assert (method.workers, method.warmup_epochs, method.nesterov) == (8, 0, False)
    for config in runs.values():
        assert config.model.zero_init_last_gamma
        assert (config.optimizer.weight_decay, config.optimizer.nesterov) == (1e-4, True)
        assert config.optimizer.lr / config.dataset.batch_size == pytest.approx(0.05 / 128)


def test_sent_bytes_of_a_layer_by_hand() -> None:
    # 30 weights at density 0.1: 3 entries of 6 bytes; 3 biases of 4 bytes.
    assert sent_bytes(torch.nn.Linear(10, 3), 0.1) == 3 * 6 + 3 * 4


def test_a_misspelt_selector_is_one_line(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dgc", "seed=0", "method.selector=exakt"]
    assert "Did you mean 'exact'" in refusal(tmp_path, *typed)


def module_of(arm: str) -> Any:
    (config,) = configs("paper=dgc", "scale=smoke", f"arm={arm}").values()
    return build_module(config)


def test_accuracy_and_perplexity_of_outputs_made_by_hand() -> None:
    module = module_of("dense")
    module.model = torch.nn.Identity()
    right, wrong = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    batches = [torch.cat([right, right, wrong]), wrong]
    found = evaluated(module, [(x, torch.zeros(len(x), dtype=torch.long)) for x in batches])
    assert found["test/accuracy"] == 0.5
    module.task, module.measure = "language", TASKS["language"]
    found = evaluated(module, [(torch.zeros(1, 2, 7), torch.tensor([[3, 4]]))])
    assert found["test/perplexity"] == pytest.approx(7)  # of seven tokens that are all as likely


def test_timing_a_pass_changes_nothing_that_is_tested() -> None:
    module = module_of("dense")
    module.model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    module.last_batch = torch.randn(8, 3), torch.zeros(8, dtype=torch.long)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    assert module._seconds_of_a_pass(2) > 0
    assert all(torch.equal(value, before[k]) for k, value in module.model.state_dict().items())
    assert all(p.grad is None for p in module.model.parameters())


def speed_up(gigabits: float, gathered: float, reduced: float) -> float:
    """Of 64 workers that compute for 10 ms, by the bytes a step that each gathers and reduces.

    63 messages are gathered, twice 63 pass on a 64th; 50 µs each.
    """
    rate = 125e6 * gigabits
    exchange = 63 * (50e-6 + gathered / rate) if gathered else 0.0
    return 64 * 0.01 / (0.01 + exchange + 126 * (50e-6 + reduced / 64 / rate))


def after_training(
    arm: str, monkeypatch: pytest.MonkeyPatch, sparse: float, dense: float, density: float
) -> dict[str, float]:
    """What is logged after a training whose passes took 10 ms and sent so many bytes a step."""
    module = module_of(arm)
    module.method.attach(module.model)
    module.last_batch = ()
    monkeypatch.setattr(module, "_seconds_of_a_pass", lambda workers: 0.01)
    counted = {
        "comm/sparse_bytes_per_step": sparse,
        "comm/dense_bytes_per_step": dense,
        "comm/density": density,
    }
    monkeypatch.setattr(module.method, "metrics", lambda: counted)
    module.on_train_end()
    return evaluated(module, [])


def test_ratios_are_counted_and_speed_ups_modelled_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = after_training("dgc", monkeypatch, sparse=1000.0, dense=4000.0, density=0.001)
    # A thousandth of all weights at 6 bytes (of each tensor, rounded up), the others at 4.
    # ResNet-50: 25,502,912 weights, 54,120 others; AlexNet: 60,954,656 weights, 10,568 others.
    assert 276.4 < found["comm/resnet50_ratio"] < 276.7
    assert 597.6 < found["comm/alexnet_ratio"] < 597.8
    assert found["time/modelled_speedup_1gbit"] == pytest.approx(speed_up(1, 1000, 4000))
    assert found["time/modelled_speedup_10gbit"] == pytest.approx(speed_up(10, 1000, 4000))


def test_a_dense_exchange_reduces_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = after_training("dense", monkeypatch, sparse=3000.0, dense=1000.0, density=1)
    assert found["time/modelled_speedup_10gbit"] == pytest.approx(speed_up(10, 0, 4000))
