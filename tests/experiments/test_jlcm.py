"""What is special to joint codebooks: bits, files, rescaled networks, streaming, full scales."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repro.experiments.jlcm import module as room
from repro.experiments.jlcm.module import Codebooks, Setting, Streamed
from rooms import check_compressed_network, configs, finished, refusal, summaries

from repro.data.tables.bundled import digits
from repro.models import ResNetCIFAR
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.codebooks import CodedWeight, read_packed
from repro.toolbox.reconstruction import weight_layers
from repro.training.execute import build_module

PAPER = load_paper("jlcm")
SMALL = ["paper=jlcm", "scale=smoke", "seed=0"]
FULL = ["paper=jlcm", "scale=full", "seed=0", "hardware=cpu", "dataset=digits"]


def built(*typed: str) -> Codebooks:
    """A module, away from any trainer."""
    (config,) = configs("paper=jlcm", *typed, "from=null").values()
    module = build_module(config)
    assert isinstance(module, Codebooks)
    return module


def test_smoke_compresses(study: Study) -> None:
    found = summaries(study)
    accuracy = found.pop("float")["test/accuracy"]
    for arm, summary in found.items():
        if not arm.startswith("decoder"):
            assert summary["test/float_accuracy"] == accuracy
        assert summary["test/kl"] > 0
        assert summary["steps"] == (3 if arm.startswith("decoder") else 6)
        assert summary["disk/changed"] == 0
        assert summary["bits/disk"] == pytest.approx(summary["bits/weight"], rel=1e-4)
    assert found["kmeans"]["mapping/flips"] == 0
    assert found["kmeans"]["bits/weight"] == found["jlcm"]["bits/weight"]
    assert found["kmeans"]["bits/weight"] == found["uniform"]["bits/weight"]
    (decoder,) = (run for run in study.runs if run.record().arm == "decoder_jlcm")
    checkpoint = torch.load(decoder.last_checkpoint, weights_only=True)
    assert not checkpoint["state_dict"]  # codes are enough to go on
    assert len(checkpoint["kept"]["coded"]) == 21


def test_the_file_holds_what_the_model_has(study: Study) -> None:
    (run,) = (run for run in study.runs if run.record().arm == "rescaled_std")
    state = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    packed = read_packed(run.folder / "artifacts" / "weights.safetensors")
    assert len(packed) == 6
    for name, coded in packed.items():
        assert torch.equal(coded.weight(), state[f"model.{name}.weight"])
        assert coded.count == (4 if 0 < list(packed).index(name) < 5 else 1)


def test_sizes_and_shares() -> None:
    """By hand, of a made-up network of 100 parameters."""
    module: Any = built("scale=smoke", "arm=jlcm")
    module.model = torch.nn.Linear(9, 10)
    module.done = [
        {"error": 0.1, "flips": 3, "jumps": 1, "weights": 60, "used": 4, "values": 4},
        {"error": 0.3, "flips": 1, "jumps": 1, "weights": 20, "used": 2, "values": 4},
    ]
    module.stored = {"a": 200, "b": 40}
    module.coded = {
        "a": {"groups": torch.zeros(6), "implied": True},
        "b": {"groups": torch.zeros(2), "implied": False},
    }
    sizes = module.sizes()
    assert sizes["bits/weight"] == 240 / 80
    assert sizes["bits/model"] == (240 + 32 * 20) / 100
    assert sizes["size/gib"] == 880 / 8 / 2**30
    assert sizes["groups/implied"] == 6 / 8
    mapping = module.mapping()
    assert mapping["mapping/flips"] == 4 / 80
    assert mapping["mapping/jumps"] == 2 / 80
    assert mapping["mapping/used"] == 6 / 8
    assert mapping["error/relative"] == pytest.approx(0.2)
    assert mapping["mapping/state_mb"] == pytest.approx(60 * 4 * 4 * 2 / 1e6)


def test_what_the_file_needs_and_what_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten weights in a file of 30 bits, which brings one of them back as another value."""
    module: Any = built("scale=smoke", "arm=jlcm")
    module.trainer = SimpleNamespace(default_root_dir="run")
    values, read = torch.arange(4.0)[None], dict[str, CodedWeight]()
    for name, rows in (("a", 2), ("b", 3)):
        codes = torch.ones(rows, 2, dtype=torch.uint8)
        rest = values, torch.zeros(rows, dtype=torch.long), None, (rows, 2)
        module.coded[name] = vars(CodedWeight(codes, *rest))
        read[name] = CodedWeight(codes.clone(), *rest)
    read["b"].codes[2, 1] = 3
    monkeypatch.setattr(room.files, "make_folder", lambda _: None)
    monkeypatch.setattr(room, "write_packed", lambda *_: 30)
    monkeypatch.setattr(room, "read_packed", lambda _: read)
    assert module.on_disk() == {"bits/disk": 3, "disk/changed": 1}


@pytest.mark.parametrize("arm", ["jlcm", "rescaled_kmeans"])
def test_only_arms_with_a_factor_rescale(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = built("scale=mini", f"arm={arm}")
    rescaled = list[torch.Tensor]()
    module._rescale = rescaled.append
    monkeypatch.setattr(room, "CodebookCompression", lambda *_: None)
    module.compressor(torch.zeros(8), None)
    assert len(rescaled) == (arm != "jlcm")


def test_kl_is_of_float_against_compressed() -> None:
    """KL(p ‖ q) of hand-made logits on the clean path of text."""
    module: Any = built("scale=smoke", "arm=decoder_jlcm")
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    module.outputs = lambda *_: (q.log()[None], p.log()[None], torch.tensor([0]))
    module.trainer = SimpleNamespace(world_size=1)
    module.on_test_start()
    module.evaluate((torch.zeros(1), torch.zeros(1)), 0)
    expected = float((p * (p / q).log()).sum())
    assert float(module.measured()["kl"]) == pytest.approx(expected)


def test_rescaling_keeps_the_function_and_spreads_the_rows() -> None:
    module = built("scale=mini", "arm=rescaled_std")
    x = digits(task="classification").splits["test"][0][:8]
    before, plain = module.model(x), copy.deepcopy(module.model)
    module._rescale(x)
    torch.testing.assert_close(module.model(x), before, rtol=1e-4, atol=1e-4)
    for layer in weight_layers(plain, x)[:-1]:
        old, new = (net.get_parameter(f"{layer}.bias") for net in (plain, module.model))
        factors = (new / old).detach()
        assert 0.25 <= float(factors.min()) < 0.6
        assert 1.7 < float(factors.max()) <= 4


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [("mini", 26_514), ("full", 25_557_032), ("full_vit", 86_567_656)],
)
def test_the_networks_are_as_published(scale: str, parameters: int) -> None:
    check_compressed_network("jlcm", "jlcm", scale, parameters)


def test_full_llama_is_the_published_decoder_block_by_block() -> None:
    config = configs("paper=jlcm", "scale=full_llama", "arm=jlcm")["jlcm"]
    assert config.model.parameters == 6_738_415_616
    assert config.module._target_.endswith("Streamed")
    assert config.method.k == 4


def test_each_kernel_and_optimizer_has_its_own_rate() -> None:
    for arm, config in configs("paper=jlcm", "scale=mini").items():
        name = {"jlcm": "inv", "jlcm_adam": "inv_adam"}.get(arm, arm)
        if name in config.rates:
            knob = "codebook_lr" if name == "codebook_only" else "mapping_lr"
            assert config.method[knob] == config.rates[name], arm


def test_published_weights_go_through_the_full_scale(tmp_path: Path) -> None:
    """A small residual network in the place of ResNet-50: folded, one update a layer."""
    model = ResNetCIFAR([1, 8, 8], 10, depth=8, width=4)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    typed = ["arm=jlcm_std", "method.iterations=1", "module.protocol.size=8", "model=resnet20",
             "model.depth=8", "model.width=4", "base.file=small.pth"]  # fmt: skip
    run = finished(tmp_path, *FULL, *typed, f"data.root={tmp_path}")
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    inner = [k for k, v in weights.items() if k.endswith("conv2.weight") and v.dim() == 4]
    assert all(4 < len(weights[name].unique()) <= 16 for name in inner)
    assert not any("running_mean" in name for name in weights)
    assert 0 < run.summary()["groups/implied"] < 1  # residual streams keep their order


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["method.kernel=invers"], "Did you mean 'inv'"),
        (["module.protocol.rescale=0.5"], "rescale is at least 1"),
        (["method=none"], "Method is for training"),
        (["method.skip=['*']"], "method.skip leaves none"),
        (["module._target_=repro.experiments.jlcm.module.Streamed"], "no blocks to stream"),
    ],
)
def test_a_bad_setting_is_one_line(typed: list[str], complaint: str, tmp_path: Path) -> None:
    assert complaint in refusal(tmp_path, *SMALL, "arm=jlcm", "from=null", *typed)


def test_streaming_refuses_what_needs_the_whole_model(tmp_path: Path) -> None:
    typed = ["arm=decoder_jlcm", "method.importance=gradients"]
    assert "Streaming knows no gradients" in refusal(tmp_path, *SMALL, *typed)


def test_the_recipe_refuses_to_change_training(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "seed=0", "method=jlcm"]
    assert "learned where training ends" in refusal(tmp_path, *typed)


def test_settings_and_streams_are_what_arms_name() -> None:
    assert isinstance(built("scale=smoke", "arm=decoder_jlcm"), Streamed)
    assert isinstance(built("scale=smoke", "arm=jlcm").protocol, Setting)
