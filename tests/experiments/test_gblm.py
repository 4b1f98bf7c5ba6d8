"""What is special to GBLM-Pruner: what is pruned, streaming, and checkpoints as published."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from published import write_llama
from rooms import configs, finished, prepared, refusal, summaries
from torch import nn

from repro.launching.local import run_study
from repro.planning.instantiate import instantiate
from repro.records import files
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.pruning import Pattern
from repro.training.execute import build_module

PAPER = load_paper("gblm")
SMOKE = ["paper=gblm", "scale=smoke"]
FULL = [scale for scale in PAPER.scales if scale.startswith("full")]


def test_smoke_prunes_what_it_says(study: Study) -> None:
    found = summaries(study)
    assert found.pop("dense")["pruned/fraction_0"] == 0
    for summary in found.values():
        assert summary["pruned/fraction_2of4"] == 0.5
        assert summary["pruned/fraction_60"] == pytest.approx(0.6, abs=0.02)


def test_seeds_differ_in_the_calibration_alone(study: Study, outputs: Path, tmp_path: Path) -> None:
    found, models = summaries(study), set(Path(outputs, ".cache").glob("*.pt"))
    arms = "arm=[magnitude,wanda,sparsegpt,gradient,gblm]"
    second = prepared(tmp_path, *SMOKE, arms, "seed=1", f"outputs={outputs}")
    run_study(second)
    assert set(Path(outputs, ".cache").glob("*.pt")) == models != set()  # none is trained anew
    other = summaries(second)
    assert {arm: found[arm]["test/loss_60"] == other[arm]["test/loss_60"] for arm in other} == {
        "magnitude": True, "wanda": False, "sparsegpt": False, "gradient": False, "gblm": False,
    }  # fmt: skip


def test_the_checkpoint_holds_the_model_that_was_pruned_last(study: Study) -> None:
    run = next(run for run in study.runs if run.record().arm == "gblm")
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    weight = weights["model.model.layers.0.mlp.up_proj.weight"]
    assert ((weight == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize("arm", ["gblm", "sparsegpt"])
def test_streaming_and_other_batches_change_nothing(
    study: Study, outputs: Path, tmp_path: Path, arm: str
) -> None:
    typed = [*SMOKE, "seed=0", f"outputs={outputs}", f"arm={arm}", "module.stream=true"]
    run = finished(tmp_path, *typed, "module.calibration.batch_size=3")
    found, whole = run.summary(), summaries(study)[arm]
    wanted = {name: value for name, value in whole.items() if not name.startswith("time/")}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("scale", FULL)
def test_full_has_the_published_calibration(scale: str) -> None:
    (config,) = configs("paper=gblm", f"scale={scale}", "arm=gblm").values()
    assert config.module.calibration.sequences == 128
    assert config.dataset.sequence_length == 2048
    method = config.method
    assert (method.alpha, method.grad_norm, method.grad_reduce) == (100.0, "l1", "sum")
    assert config.base._target_.endswith("Given")
    assert config.module.patterns == [0.5, "2:4", "4:8"]


def test_the_small_decoder_has_the_stated_size() -> None:
    (config,) = configs("paper=gblm", "arm=gblm").values()
    assert sum(p.numel() for p in instantiate(config.model).parameters()) == 163_520


def full(root: Path, *typed: str) -> list[str]:
    return [
        "paper=gblm", "scale=full", "seed=0", f"data.root={root}", "hardware=cpu",
        "model.parameters=null", f"dataset.vocab_size={write_llama(root)}",
        "dataset.sequence_length=32", "module.calibration.sequences=3", f"outputs={root}",
        *typed,
    ]  # fmt: skip


@pytest.mark.parametrize("stream", ["true", "false"])
def test_full_prunes_a_published_checkpoint(tmp_path: Path, stream: str) -> None:
    run = finished(tmp_path / "outputs", *full(tmp_path, "arm=gblm", f"module.stream={stream}"))
    assert run.summary()["pruned/fraction_4of8"] == 0.5
    data = run.record().data
    assert data is not None
    assert data["sizes"]["test"] > 500


@pytest.mark.parametrize(
    ("gone", "complaint"),
    [
        ("huggyllama/llama-7b/config.json", "Model 'huggyllama/llama-7b' is missing"),
        ("huggyllama/llama-7b/tokenizer.json", "The tokenizer of .* is missing"),
        ("allenai/c4/en/c4-train.00000-of-01024.json.gz", "Fetch it .about 320 MB."),
        ("Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet", "repro data fetch"),
    ],
)
def test_what_is_missing_at_full_is_one_line(tmp_path: Path, gone: str, complaint: str) -> None:
    typed = full(tmp_path, "arm=wanda")
    (tmp_path / gone).unlink()
    assert re.search(complaint, refusal(tmp_path / "outputs", *typed, lines=3))


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("module.patterns=[0.5,0.5]", "say each pattern once"),
        ("module.patterns=[1.5]", "A pattern is a fraction"),
        ("module.patterns=['3:5']", "groups of 5; a layer has 32"),
        ("module.calibration.sequences=0", "sequences is a whole number"),
        ("module.calibration.length=1000000", "too few for 1000000"),
        ("method=none", "choose method=gblm"),
        ("model=lstm", "has no blocks"),
        (
            "dataset=digits model.vocab_size=98 module.calibration.length=8"
            " module.evaluation.length=8",
            "is no text",
        ),
        ("base.steps=0", "base.steps is a whole number"),
    ],
)
def test_a_bad_setting_is_one_line(
    outputs: Path, tmp_path: Path, typed: str, complaint: str
) -> None:
    typed_all = [*SMOKE, "seed=0", f"outputs={outputs}", "arm=gblm", *typed.split()]
    assert complaint.lower() in refusal(tmp_path, *typed_all).lower()


@pytest.fixture
def pruning() -> Any:
    """The room's module outside of a run."""
    (config,) = configs("paper=gblm", "scale=smoke", "arm=magnitude").values()
    return build_module(config)


def test_losses_and_perplexities_of_a_model_that_knows_nothing(pruning: Any) -> None:
    """To which all 98 symbols are as likely."""
    pruning.data = SimpleNamespace(cut=lambda split, length, most: torch.zeros(5, length).long())
    nn.init.zeros_(next(p for p in pruning.model.parameters() if len(p) == 98))
    for pattern, loss, perplexity in (
        (0, "test/loss_0", "test/perplexity_0"),
        (0.5, "test/loss_50", "test/perplexity_50"),
        (0.6, "test/loss_60", "test/perplexity_60"),
        (0.7, "test/loss_70", "test/perplexity_70"),
        ("2:4", "test/loss_2of4", "test/perplexity_2of4"),
        ("4:8", "test/loss_4of8", "test/perplexity_4of8"),
    ):
        measured = pruning._measure_losses(Pattern(pattern))
        assert measured[loss] == pytest.approx(math.log(98))
        assert measured[perplexity] == pytest.approx(98)


def test_structure_is_the_mean_over_layers(pruning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of whole columns spread 10 times as wide as draws; a layer left whole counts 1."""
    striped = nn.Linear(8, 100)
    with torch.no_grad():
        striped.weight[:, ::2] = 0
    pruning.held = [SimpleNamespace(blocks=[nn.Sequential(striped, nn.Linear(8, 100))])]
    mask = io.BytesIO()
    monkeypatch.setattr(files, "write_atomically", lambda _, write: write(mask))
    monkeypatch.setattr(files, "make_folder", lambda _: None)
    pruning.picture, pruning.trainer = "0.0", SimpleNamespace(default_root_dir="run")
    measured = pruning._measure_masks(Pattern(0.5))
    assert np.load(io.BytesIO(mask.getvalue())).tolist() == 100 * [4 * [True, False]]
    assert measured["structure/columns_50"] == pytest.approx((10 + 1) / 2)
    assert measured["pruned/fraction_50"] == 400 / 1600
