"""What is special to post-training quantisation: bits, weights that come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import same_after_a_kill
from rooms import check_compressed_network, configs, finished, refusal, summaries

from repro.models import ResNetCIFAR
from repro.records.papers import load_paper
from repro.records.study import Study

PAPER = load_paper("gradient_ptq")
SMALL = ["paper=gradient_ptq", "scale=smoke", "seed=0"]
FULL = ["paper=gradient_ptq", "scale=full", "seed=0", "hardware=cpu", "dataset=digits"]


def test_smoke_quantises(study: Study) -> None:
    found = summaries(study)
    accuracy = found.pop("float")["test/accuracy"]
    for arm, summary in found.items():
        assert summary["test/float_accuracy"] == accuracy
        assert summary["test/kl"] > 0
        assert summary["steps"] == (4 if arm == "qdrop" else 6)
    assert found["mixed"]["bits/average"] <= found["free"]["bits/average"] + 0.1


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [("mini", 26_514), ("full", 11_689_512), ("full_vit", 86_567_656)],
)
def test_the_networks_are_as_published(scale: str, parameters: int) -> None:
    check_compressed_network("gradient_ptq", "adaround", scale, parameters)


def test_full_llama_is_the_published_decoder() -> None:
    config = next(iter(configs("paper=gradient_ptq", "scale=full_llama").values()))
    assert config.model.parameters == 6_738_415_616
    assert config.method.skip == ["lm_head"]


def test_missing_weights_are_one_clear_line(tmp_path: Path) -> None:
    refused = refusal(tmp_path, *FULL, "arm=adaround", f"data.root={tmp_path}", lines=3)
    assert "weights are missing" in refused


def test_published_weights_go_through_the_full_scale(tmp_path: Path) -> None:
    """A small residual network in the place of ResNet-18: folded, two bits, one update a unit."""
    model = ResNetCIFAR([1, 8, 8], 10, depth=8, width=4)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    typed = ["arm=brecq_improved", "method.iterations=1", "module.protocol.size=8",
             "model=resnet20", "model.depth=8", "model.width=4", "base.file=small.pth"]  # fmt: skip
    run = finished(tmp_path, *FULL, *typed, f"data.root={tmp_path}")
    assert run.summary()["steps"] == 5  # the stem, three blocks, the classifier
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    inner = [k for k, v in weights.items() if k.endswith("conv2.weight") and v.dim() == 4]
    assert all(len(channel.unique()) <= 4 for k in inner for channel in weights[k])
    assert not any("running_mean" in name for name in weights)


@pytest.mark.parametrize("arm", ["vit_brecq", "decoder_brecq_improved"])
def test_other_networks_are_quantised_too(arm: str, tmp_path: Path) -> None:
    typed = [f"arm={arm}", "method.iterations=2", "module.protocol.size=8"]
    measure = "accuracy"
    if arm.startswith("decoder"):
        typed += ["model.layers=1", "module.protocol.eval_batches=1", f"outputs={tmp_path}"]
        measure = "perplexity"
    found = finished(tmp_path, *SMALL, *typed).summary().keys()
    assert {f"test/{measure}", f"test/float_{measure}", "val/kl"} <= found


def test_a_run_killed_in_the_pass_over_activations_ends_with_the_same_numbers(
    tmp_path: Path,
) -> None:
    # A network as it is drawn needs no other arm.
    typed = ["arm=qdrop", "from=null", "activations.together=false", "activations.iterations=5"]
    assert same_after_a_kill(tmp_path, 5, *SMALL, *typed).summary()["steps"] == 8


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method.variable=fre", "Did you mean 'free'"),
        (
            "method.mixed={_target_:repro.methods.gradient_ptq.Mixed,order:best}",
            "method.mixed.order",
        ),
        ("module.protocol.source=music", "module.protocol.source is data, noise"),
        ("method=none", "Method is a method of training"),
        ("module.protocol.size=5000", "such examples"),
        ("method.skip=['*']", "method.skip leaves none"),
    ],
)
def test_a_bad_setting_is_one_line(typed: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, *SMALL, "arm=free", "from=null", typed)


def test_the_recipe_refuses_to_change_training(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "seed=0", "method=adaround"]
    assert "starts where training ends" in refusal(tmp_path, *typed)
