"""What is special to g-SAE: which latents are active, what is recovered, GPT-2's own files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interruptions import same_after_a_kill
from published import write_gpt2
from repro.experiments.gsae import module as room
from repro.experiments.gsae.module import Dictionary, DictionaryLearning
from rooms import configs, evaluated, finished, refusal, summaries
from torch import nn

from repro.data.tables.simulated import PlantedDictionary
from repro.errors import UserError
from repro.methods.gsae import GradientAugmented, Splicing, TopKAutoencoder
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.method import Method

PAPER = load_paper("gsae")
SMOKE = ["paper=gsae", "scale=smoke", "seed=0"]


def test_smoke_dissects_the_same_model_in_both_arms(study: Study) -> None:
    found = summaries(study)
    for arm in ("topk", "gsae", "gated"):
        assert set(PAPER.report) <= found[arm].keys()
    assert found["topk"]["test/l0/topk"] == 6
    assert found["lm_gsae"]["test/l0/sampled"] == 2
    assert {"val/kl", "test/loss_recovered/label"} <= found["lm_gsae"].keys()
    # Only gradients tell the modes apart.
    assert found["lm_topk"]["test/clean_loss"] == found["lm_gsae"]["test/clean_loss"]
    assert found["topk"]["test/clean_loss"] == found["gsae"]["test/clean_loss"]
    assert found["topk"]["test/kl/label"] == found["topk"]["test/kl/topk"]
    assert found["gsae"]["test/kl/label"] != found["gsae"]["test/kl/topk"]


@pytest.fixture
def dissecting() -> Any:
    """The room's module without a run; latents point along the first axis, and 30 degrees above."""
    absent: Any = None
    where = Dictionary(absent, absent, side="input")
    module: Any = DictionaryLearning(nn.Identity(), where, "classification", Method())
    module.sae = TopKAutoencoder(2, latents=2, k=1, selector=GradientAugmented())
    module.sae.W_dec.data = torch.tensor([[2.0, 0.0], [3**0.5, 1.0]])
    module.register_buffer("mean", torch.tensor([1.0, 0.5]))
    module.register_buffer("norm", torch.tensor(1.0))
    module.data = PlantedDictionary.__new__(PlantedDictionary)
    module.data.features = torch.tensor([[0.5, 0.0], [0.0, 3.0]])
    module.data.is_influential = torch.tensor([True, False])
    return module


def test_what_is_measured_is_logged_by_mode_and_as_the_config_says(dissecting: Any) -> None:
    x, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    splicing = Splicing(dissecting.site, dissecting.sae, dissecting.mean)
    splicing.update(x, target)
    expected, logs = splicing.values(), evaluated(dissecting, [(x, target)])
    for name in (
        "test/delta_ce/label", "test/delta_ce/sampled", "test/delta_ce/topk",
        "test/kl/label", "test/kl/sampled", "test/kl/topk",
        "test/fvu/label", "test/fvu/sampled", "test/fvu/topk",
        "test/dead/label", "test/dead/sampled", "test/dead/topk",
    ):  # fmt: skip
        assert logs[name] == expected[name.removeprefix("test/")]
    for name in ("test/delta_ce", "test/kl", "test/fvu", "test/dead"):
        assert logs[name] == expected[f"{name.removeprefix('test/')}/sampled"]
    assert logs["test/recovery/influential"] == pytest.approx(1)
    assert logs["test/recovery/inert"] == pytest.approx(0.5)  # 60 degrees


def test_what_starts_trains_and_steers(dissecting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sampled labels are sure to be 0, the true one is 1, and a mean norm is 2."""
    x, target = torch.tensor([[40.0, 0.0]]), torch.tensor([1])
    dissecting.data = SimpleNamespace(train_dataloader=lambda: 5 * [(x, target)])
    dissecting.dictionary.sample = 3
    assert len(dissecting._sample(x.device)) == 3
    for dissecting.dictionary.labels, gradient in (("true", [[1, -1]]), ("sampled", [[0, 0]])):
        assert dissecting._activations((x, target))[1].round().tolist() == gradient
    dissecting.norm, dissecting.contexts = torch.tensor(2.0), x
    dissecting.splicing = SimpleNamespace(fired=lambda _: torch.tensor([True, True]))
    monkeypatch.setattr(room, "steering_effects", lambda *given: torch.tensor(given[-1]))
    assert dissecting._steering() == pytest.approx(0.3 * 2)


def test_one_device_only(dissecting: Any) -> None:
    dissecting.sae, dissecting._trainer = None, SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match="one device"):
        dissecting.setup("fit")


def test_a_missing_gpt2_is_a_clear_message(tmp_path: Path) -> None:
    config = next(iter(configs("paper=gsae", "scale=full").values()))
    with pytest.raises(UserError, match="'openai-community/gpt2' is missing"):
        instantiate(config.model, root=str(tmp_path))


def test_full_runs_on_a_tiny_gpt2(tmp_path: Path) -> None:
    """The whole path of scale=full: checkpoint, tokenizer and shards in the hub's layout."""
    write_gpt2(tmp_path)
    small = [
        "model.parameters=null", "dataset.vocab_size=300", "dataset.sequence_length=16",
        "dataset.held_out=0.2", "training.steps_per_epoch=4",
        "module.dictionary.site=transformer.h.1", "module.dictionary.sample=32",
        "module.dictionary.steered=3", "autoencoder.latents=48", "autoencoder.k=4",
        "autoencoder.dead_after=50", "hardware=cpu",
    ]  # fmt: skip
    typed = ["paper=gsae", "scale=full", "arm=gpt2_gsae", "seed=0", f"data.root={tmp_path}"]
    summary = finished(tmp_path / "out", *typed, *small).summary()
    assert 0 < summary["test/l0/sampled"] <= 4
    assert summary["test/steering"] > 0


def test_a_killed_run_ends_with_the_same_numbers(outputs: Path, tmp_path: Path) -> None:
    typed = ["arm=lm_gsae", "training.steps_per_epoch=6", "module.dictionary.labels=sampled"]
    same_after_a_kill(tmp_path, 4, *SMOKE, f"outputs={outputs}", *typed)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method=man", "choose autoencoder="),
        ("model=mlp", "input_shape"),
        ("module.dictionary.labels=sample", "Did you mean 'sampled'"),
        ("module.dictionary.steered=0", "steered is a whole number of at least 1"),
    ],
)
def test_a_bad_choice_is_one_line(
    typed: str, complaint: str, outputs: Path, tmp_path: Path
) -> None:
    refused = refusal(tmp_path, *SMOKE, f"outputs={outputs}", "arm=lm_gsae", typed)
    assert complaint in refused
