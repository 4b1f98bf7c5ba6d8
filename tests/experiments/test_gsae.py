"""What is special to g-SAE: which latents are active, what is recovered, GPT-2's own files."""

from __future__ import annotations

import math
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
from torch import Tensor, nn

from repro.data.tables.simulated import PlantedDictionary
from repro.errors import UserError
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.method import Method
from repro.training.execute import build_module

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


class ByHand(nn.Module):
    """Halves activations, or moves them by 2 against the signs of their gradient.

    Two latents are the positive parts of what comes out, and two the negative ones.
    """

    selector = SimpleNamespace(needs_gradient=True)
    W_dec = torch.tensor([[2.0, 0.0], [3**0.5, 1.0], [-1.0, 0.0], [0.0, -1.0]])

    def encode(self, x_BD: Tensor, g_BD: Tensor | None, _selector: Any) -> Tensor:
        out_BD = 0.5 * x_BD if g_BD is None else x_BD - 2 * g_BD.sign()
        return torch.cat([out_BD.relu(), (-out_BD).relu()], 1)

    def decode(self, f_BN: Tensor) -> Tensor:
        return f_BN[:, :2] - f_BN[:, 2:]


def loss_of(*leads: float) -> float:
    """Mean cross-entropy of logits whose right one leads the other of two by so much."""
    return sum(math.log1p(math.exp(-lead)) for lead in leads) / len(leads)


def divergence(clean: float, spliced: float) -> float:
    """KL of two classes by the leads of the first."""
    p, q = 1 / (1 + math.exp(-clean)), 1 / (1 + math.exp(-spliced))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_measures_of_a_dictionary_that_was_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits (2, 0) and (0, 1) are the activations; class 0 is right, class 1 and 0 are drawn."""
    monkeypatch.setattr(room, "_sampled", lambda *_: torch.tensor([1, 0]))
    absent: Any = None
    where = Dictionary(absent, absent, side="input")
    found: Any = DictionaryLearning(
        nn.Identity(), absent, absent, where, "classification", Method()
    )
    found.sae, found.data = ByHand(), PlantedDictionary.__new__(PlantedDictionary)
    found.register_buffer("mean", torch.tensor([1.0, 0.5]))
    found.register_buffer("norm", torch.tensor(1.0))
    found.data.features = torch.tensor([[0.5, 0.0], [0.0, 3.0]])
    found.data.is_influential = torch.tensor([True, False])
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    logs = evaluated(found, [(x, torch.tensor([0, 0]))])
    clean = loss_of(2, -1)
    # Halved: (1, 0), (0, ½). Against the gradient of class 0: (4, -2), (2, -1); of class 1: (0, 2).
    assert logs["test/delta_ce/topk"] == pytest.approx(loss_of(1, -0.5) - clean)
    assert logs["test/delta_ce/label"] == pytest.approx(loss_of(6, 3) - clean)
    assert logs["test/delta_ce/sampled"] == pytest.approx(loss_of(-2, 3) - clean)
    kl = (divergence(2, -2) + divergence(-1, 3)) / 2
    assert logs["test/kl/sampled"] == pytest.approx(kl, rel=1e-5)
    # Errors of 8; the variance is 5/2 - (1² + ½²).
    assert logs["test/fvu/sampled"] == pytest.approx(8 / 1.25)
    assert logs["test/dead/topk"] == 2 / 4
    assert logs["test/dead/sampled"] == 1 / 4
    # Decoders point along the first axis, and to 30 degrees above it, 60 from the second.
    assert logs["test/recovery/influential"] == pytest.approx(1)
    assert logs["test/recovery/inert"] == pytest.approx(0.5)


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
        ("module.dictionary.mode=lable", "Did you mean 'label'"),
        ("module.dictionary.steered=0", "steered is at least 1"),
    ],
)
def test_a_bad_choice_is_one_line(
    typed: str, complaint: str, outputs: Path, tmp_path: Path
) -> None:
    refused = refusal(tmp_path, *SMOKE, f"outputs={outputs}", "arm=lm_gsae", typed)
    assert complaint in refused


def test_one_device_only(study: Study) -> None:
    module: Any = build_module(study.runs[-1].config())
    assert isinstance(module.dictionary, Dictionary)
    module.trainer = type("Trainer", (), {"world_size": 2})()
    with pytest.raises(UserError, match="one device"):
        module.setup("fit")
