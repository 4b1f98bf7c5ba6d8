"""The room of gradient-based post-training quantisation, at smoke and by composition elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interruptions import run_until, timeless
from repro.experiments.gradient_ptq.figures import BY_BITS, FACTORS, PAIRS
from repro.experiments.gradient_ptq.module import Protocol, Quantized

from repro.claims.studies import judge_study
from repro.claims.verdicts import Verdict
from repro.errors import UserError
from repro.launching.local import run_study
from repro.models import ResNetCIFAR
from repro.planning.plan import plan_study
from repro.planning.prepare import create_study
from repro.records.papers import load_paper
from repro.records.run import Status
from repro.records.study import Study
from repro.report.draw import draw_study
from repro.toolbox.pretrained import Given, WeightsFile
from repro.training.execute import build_module

PAPER = load_paper("gradient_ptq")
SMALL = ["paper=gradient_ptq", "scale=smoke", "n_jobs=1", "seed=0"]
UNTRAINED = ["arm=qdrop", "from=null"]  # a network as it is drawn needs no other arm


def study_of(folder: Path, *typed: str) -> Study:
    return create_study(plan_study([*SMALL, *typed]), folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The arms of scale=smoke, run once for all tests here."""
    made = study_of(tmp_path_factory.mktemp("outputs"))
    run_study(made)
    return made


def test_figures_speak_of_arms_that_there_are() -> None:
    drawn = {arm for _, arms in FACTORS.values() for arm in arms} | set(PAIRS) | set(BY_BITS)
    assert drawn | {f"{arm}_improved" for arm in PAIRS} <= set(PAPER.arms)


def test_smoke_quantises_and_judges(study: Study) -> None:
    assert {run.status() for run in study.runs} == {Status.FINISHED}
    summaries = {run.record()["arm"]: run.summary() for run in study.runs}
    for arm, summary in summaries.items():
        if arm != "float":
            assert summary["test/float_accuracy"] == summaries["float"]["test/accuracy"]
            assert summary["test/kl"] > 0
            assert summary["steps"] == (4 if arm == "qdrop" else 6)
    assert summaries["mixed"]["bits/average"] <= summaries["free"]["bits/average"] + 0.1
    assert {verdict.verdict for verdict in judge_study(study)} == {Verdict.NOT_AT_SCALE}
    assert {path.name for path in draw_study(study)} >= {"factors.png", "guidelines.svg"}


@pytest.mark.parametrize(
    ("scale", "arms", "parameters"),
    [
        ("mini", "adaround,mixed_reversed,qdrop_improved,decoder_hessian", 26_514),
        ("full", "adaround,free_64_images", 11_689_512),
        ("full_vit", "adaround", 86_567_656),
    ],
)
def test_arms_of_each_kind_compose_and_have_their_network(
    scale: str, arms: str, parameters: int
) -> None:
    typed = ["paper=gradient_ptq", f"scale={scale}", "seed=0", f"arm=[{arms}]"]
    runs = plan_study(typed).runs
    with torch.device("meta"):
        modules = {run.arm: build_module(run.config) for run in runs}
    assert set(arms.split(",")) <= set(modules)
    network = modules["adaround"].model
    assert sum(p.numel() for p in network.parameters()) == parameters
    if scale != "mini":
        assert modules["adaround"].recipe.iterations == 20000
        assert {run.parent for run in runs} == {None}


def test_full_llama_composes() -> None:
    runs = plan_study(["paper=gradient_ptq", "scale=full_llama"]).runs
    assert runs[0].config.model.parameters == 6_738_415_616
    assert runs[0].config.method.skip == ["lm_head"]


def test_missing_weights_are_one_clear_line(tmp_path: Path) -> None:
    full = ["paper=gradient_ptq", "scale=full", "arm=adaround", "seed=0", "hardware=cpu"]
    made = create_study(plan_study([*full, f"data.root={tmp_path}", "dataset=digits"]), tmp_path)
    run_study(made)
    error = made.runs[0].record()["error"]
    assert error["kind"] == "user", error["traceback"]
    assert "weights are missing" in error["message"]


def test_published_weights_go_through_the_full_scale(tmp_path: Path) -> None:
    """A small residual network in the place of ResNet-18: folded, two bits, one update a unit."""
    model = ResNetCIFAR([1, 8, 8], 10, depth=8, width=4)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    typed = ["paper=gradient_ptq", "scale=full", "arm=brecq_improved", "seed=0", "hardware=cpu",
             "dataset=digits", "method.iterations=1", "module.protocol.size=8", "model=resnet20",
             "model.depth=8", "model.width=4", "base.file=small.pth"]  # fmt: skip
    made = create_study(plan_study([*typed, f"data.root={tmp_path}", "n_jobs=1"]), tmp_path)
    run_study(made)
    run = made.runs[0]
    assert run.status() == Status.FINISHED, run.record()["error"]
    assert run.summary()["steps"] == 5  # the stem, three blocks, the classifier
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    inner = [k for k, v in weights.items() if k.endswith("conv2.weight") and v.dim() == 4]
    assert all(len(channel.unique()) <= 4 for k in inner for channel in weights[k])
    assert not any("running_mean" in name for name in weights)


@pytest.mark.parametrize("arm", ["vit_brecq", "decoder_brecq_improved"])
def test_other_networks_are_quantised_too(arm: str, tmp_path: Path) -> None:
    decoder = arm.startswith("decoder")
    typed = [f"arm={arm}", "method.iterations=2", "module.protocol.size=8"]
    if decoder:
        typed += ["model.layers=1", "module.protocol.eval_batches=1", f"outputs={tmp_path}"]
    made = study_of(tmp_path, *typed)
    run_study(made)
    assert [run.record()["error"] for run in made.runs] == [None] * len(made.runs)
    measure = "perplexity" if decoder else "accuracy"
    found = made.runs[-1].summary().keys()
    assert {f"test/{measure}", f"test/float_{measure}", "val/kl"} <= found


def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    typed = [*UNTRAINED, "training.checkpoint.every_steps=1", "activations.together=false",
             "activations.iterations=5"]  # fmt: skip
    straight, killed = (study_of(tmp_path / name, *typed) for name in "ab")
    run_study(straight)
    # In the second pass, that over activations.
    run_until(killed, Quantized, lambda module, index: module.global_step == 5)
    run_study(killed)
    ends = [timeless(made.runs[0]) for made in (straight, killed)]
    assert ends[0] == ends[1]
    assert ends[0]["steps"] == 8
    assert killed.runs[0].record()["attempts"] == 2


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
    ],
)
def test_a_bad_setting_is_one_clear_line(typed: str, complaint: str) -> None:
    (run,) = plan_study([*SMALL, "arm=free", "from=null", typed]).runs
    with pytest.raises(UserError, match=complaint) as caught, torch.device("meta"):
        build_module(run.config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("module.protocol.size=5000", "such examples"),
        ("method.skip=['*']", "method.skip leaves none"),
    ],
)
def test_what_only_the_data_show_is_one_clear_line(
    tmp_path: Path, typed: str, complaint: str
) -> None:
    made = study_of(tmp_path, "arm=free", "from=null", typed)
    run_study(made)
    error = made.runs[0].record()["error"]
    assert error["kind"] == "user", error["traceback"]
    assert complaint in error["message"]
    assert "\n" not in error["message"]


def test_the_recipe_refuses_to_change_training(tmp_path: Path) -> None:
    typed = ["paper=dgc", "scale=smoke", "arm=dense", "seed=0", "n_jobs=1", "method=adaround"]
    made = create_study(plan_study(typed), tmp_path)
    run_study(made)
    assert "starts where training ends" in made.runs[0].record()["error"]["message"]


# -- The parts --


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (3 + 2 * torch.randn(20, 1, 4, 4, generator=generator), torch.arange(20) % 10)
        for _ in range(5)
    ]


def test_calibration_examples() -> None:
    x, y = Protocol(Given(), size=50).calibration(batches(), 10)
    assert torch.equal(x[:20], batches()[0][0])
    assert y is not None
    assert len(x) == len(y) == 50
    _, labels = Protocol(Given(), size=50, source="unbalanced").calibration(batches(), 10)
    assert labels is not None
    assert set(labels.tolist()) == set(range(5))
    noise, none = Protocol(Given(), size=80, source="noise").calibration(batches(), 10)
    assert none is None
    assert float(noise.mean()) == pytest.approx(3, abs=0.2)
    assert float(noise.std()) == pytest.approx(2, abs=0.2)
    tokens = [(torch.arange(40).view(4, 10), torch.arange(40).view(4, 10))]
    drawn, _ = Protocol(Given(), size=4, source="noise").calibration(tokens, None)
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 40
    with pytest.raises(UserError, match="needs classes"):
        Protocol(Given(), source="unbalanced").calibration(tokens, None)


def test_weights_files(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    WeightsFile("w.pth", root=tmp_path)(other, None, torch.device("cpu"))
    assert torch.equal(model.weight, other.weight)
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "w.safetensors")
    WeightsFile(tmp_path / "w.safetensors")(torch.nn.Linear(2, 3), None, torch.device("cpu"))
    with pytest.raises(UserError, match="not the weights of this model"):
        WeightsFile(tmp_path / "w.pth")(torch.nn.Linear(9, 3), None, torch.device("cpu"))
    with pytest.raises(UserError, match=r"base\.file="):
        WeightsFile("none.pth", root=tmp_path)(other, None, torch.device("cpu"))
