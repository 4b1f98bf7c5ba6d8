"""What is special to OTOv3: the extracted network is what is tested, and what its numbers mean."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repro.experiments.otov3.module import Compressed
from rooms import configs, evaluated, finished, refusal, summaries
from torch import nn

from repro.methods.otov3 import Channels, Segments, SparseTraining
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.toolbox.costs import multiply_accumulates
from repro.training.execute import build_module

PAPER = load_paper("otov3")
SMOKE = ["paper=otov3", "scale=smoke", "seed=0"]


def built(*typed: str) -> Compressed:
    """A module, away from any trainer."""
    (*_, config) = configs("paper=otov3", *typed).values()
    module = build_module(config)
    assert isinstance(module, Compressed)
    return module


def silenced(module: Compressed, groups: list[int]) -> tuple[Channels | Segments, torch.Tensor]:
    """Sets some groups to zero, as training would."""
    structure = module._structure(module.model)
    alive = torch.ones(structure.blocks.count)
    alive[groups] = 0
    structure.blocks.scale_(alive)
    return structure, structure.zero()


def test_accuracy_and_loss_are_those_of_the_extracted_network() -> None:
    """The full network tells no classes apart; the extracted one has its first inputs as logits.

    It is 64 times three weights, each of which takes part in one product.
    """
    module: Any = built("scale=mini", "arm=dhspg", "module.targets=[0.5,0.69,0.75]")
    structure = module._structure(module.model)
    first_three = nn.Linear(64, 3, bias=False).requires_grad_(False)
    first_three.weight.data = torch.eye(3, 64)

    class Extracting:
        graph = None

        def __getattr__(self, name: str) -> Any:
            return getattr(structure, name)

        def extract(self, _model: nn.Module, _zero: torch.Tensor) -> nn.Module:
            return nn.Sequential(nn.Flatten(), first_three)

    module.method.structure = Extracting()
    module._difference = lambda: 0.0
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.zero_()
    x = torch.zeros(3, *module.example.shape[1:])
    x.flatten(1)[:, :3] = 3 * torch.eye(3)
    found = evaluated(module, [(x, torch.tensor([0, 1, 0]))])
    assert found["test/accuracy"] == pytest.approx(2 / 3)
    assert found["test/loss"] == pytest.approx(math.log(math.e**3 + 2) - 3 * 2 / 3)
    assert found["test/products"] == found["test/parameters"] == 192
    whole = sum(p.numel() for p in module.model.parameters())
    assert found["test/parameters_share"] == pytest.approx(192 / whole)


class Says(nn.Module):
    """The same, whatever it is asked."""

    def __init__(self, *answer: float) -> None:
        super().__init__()
        self.answer = torch.tensor([answer])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_a_difference_is_in_units_of_the_largest_output() -> None:
    module = built("scale=mini", "arm=dhspg")
    module.model, module.tested = Says(-4.0, 1.0), Says(-4.0, 3.0)
    assert module._difference() == 2 / 4


def test_what_is_reported_of_a_pruned_network() -> None:
    module = built("scale=mini", "arm=dhspg", "module.targets=[0.5,0.69,0.75]")
    structure, zero = silenced(module, list(range(0, 96, 3)))  # 32 of 96
    module.model.eval()
    module.tested = structure.extract(module.model, zero)
    assert isinstance(module.method, SparseTraining)
    found = module._removed(module.method, structure, zero)
    assert found["test/sparsity"] == pytest.approx(1 / 3)
    assert found["test/gap"] == pytest.approx(0.7 - 1 / 3)
    assert found["test/gap/50"] == pytest.approx(1 / 6)
    assert found["test/gap/69"] == pytest.approx(0.69 - 1 / 3)
    assert found["test/gap/75"] == pytest.approx(5 / 12)
    assert found["test/width/stem.0"] == 16
    assert found["test/emptied"] == 0
    assert found["test/difference"] < 1e-5
    module.method.measure = "products"
    assert isinstance(structure, Channels)
    gap = module._removed(module.method, structure, zero)["test/gap"]
    assert gap == pytest.approx(abs(structure.share(zero) - 0.7))
    norm: Any = module.model.get_submodule("stem.1")
    with torch.no_grad():
        norm.bias[0] = 1.0  # left out of its group
    assert module._removed(module.method, structure, zero)["test/difference"] > 1e-3


def test_what_is_reported_of_operators() -> None:
    module = built("scale=mini_erasing", "arm=h2spg")
    assert isinstance(module.method, SparseTraining)
    for order, eight, nine in (
        (range(12), 1.0, 1.0),
        ([0, 1, 2, 4, 5, 6, 8, 9, 3, 7, 10, 11], 0.0, 1.0),
        ([0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11], 0.0, 0.0),
    ):
        module.method.scores = torch.zeros(12)
        module.method.scores[list(order)] = torch.arange(12.0, 0, -1)
        structure, zero = silenced(module, [0, 1])
        found = module._removed(module.method, structure, zero)
        assert found["test/score_cuts/8"] == eight
        assert found["test/score_cuts/9"] == nine
    assert found["test/random_cuts/8"] == pytest.approx(207 / 495)
    assert found["test/random_cuts/9"] == pytest.approx(156 / 220)
    assert found["test/sparsity"] == pytest.approx(1 / 6)
    structure, zero = silenced(module, [0, 1, 2, 3])
    assert module._removed(module.method, structure, zero)["test/emptied"] == 1


def test_the_extracted_network_is_what_is_tested(study: Study) -> None:
    found = summaries(study)
    assert 0.4 <= found["dhspg"]["test/sparsity"] <= 0.55
    assert found["dhspg"]["test/products_share"] < 0.8
    assert found["dhspg"]["test/parameters_share"] < 0.8
    assert found["dense"]["test/products_share"] == 1
    assert found["scratch"]["test/products"] == found["dhspg"]["test/products"]
    assert found["scratch"]["test/parameters"] == found["dhspg"]["test/parameters"]
    assert found["magnitude"]["test/products_share"] < 0.8
    assert found["h2spg"]["test/emptied"] == 0


def test_scratch_begins_with_fresh_weights_of_the_parents_widths() -> None:
    parent, child = built("scale=mini", "arm=dhspg"), built("scale=mini", "arm=scratch")
    _, zero = silenced(parent, [0, 1, *range(24, 40)])
    before = child.model.state_dict()["stem.0.weight"].clone()
    child.start_from({"state_dict": parent.state_dict()})
    after = child.model.state_dict()["stem.0.weight"]
    assert after.shape == (22, 1, 3, 3)
    assert not torch.isin(after, before).any()
    # Drawn for the new number of inputs: uniform up to 1 / sqrt(fan_in).
    second = child.model.state_dict()["blocks.0.conv2.weight"]
    fan_in = second[0].numel()
    assert second.shape[1] == 24 - 16
    assert 0.9 < float(second.abs().max()) * fan_in**0.5 <= 1
    assert int(zero.sum()) == 18


def test_a_childs_target_is_the_parents_share_of_products() -> None:
    parent, child = built("scale=mini", "arm=dhspg"), built("scale=mini", "arm=magnitude")
    structure, zero = silenced(parent, list(range(0, 96, 2)))
    child.start_from({"state_dict": parent.state_dict()})
    assert isinstance(child.method, SparseTraining)
    assert isinstance(structure, Channels)
    smaller = structure.extract(parent.model, zero)
    example = torch.zeros(1, 1, 8, 8)
    share = multiply_accumulates(smaller, example) / multiply_accumulates(parent.model, example)
    assert child.method.target == pytest.approx(1 - share)
    assert child.method.measure == "products"


def test_mixed_examples_have_mixed_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of each of two examples, and three of the other: logits of 3/4 and 9/4."""
    drawn = SimpleNamespace(sample=lambda: torch.tensor(0.25))
    monkeypatch.setattr(torch.distributions, "Beta", lambda *_: drawn)
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([1, 0]))
    module = built("scale=mini", "arm=dense", "module.mixup=1.0", "module.label_smoothing=0.0")
    module.model = nn.Identity()
    loss = module.loss((3 * torch.eye(2), torch.tensor([0, 1])))
    expected = math.log(math.exp(3 / 4) + math.exp(9 / 4)) - (3 / 4 + 3 * 9 / 4) / 4
    assert float(loss) == pytest.approx(expected)


def test_mixed_examples_have_mixed_losses() -> None:
    module = built("scale=mini", "arm=dense", "module.mixup=1.0")
    batch = (torch.randn(16, 1, 8, 8), torch.arange(16) % 10)
    module.model.eval()
    losses = torch.stack([module.loss(batch) for _ in range(5)])
    assert losses.std() > 1e-4
    smoothed = built("scale=mini", "arm=dense", "module.label_smoothing=0.5")
    assert smoothed._loss(torch.tensor([[20.0, 0.0]]), torch.tensor([0])) > 1


@pytest.mark.parametrize("scale", ["mini", "mini_control", "mini_erasing", "mini_ablations"])
def test_every_arm_has_its_own_rates(scale: str) -> None:
    for arm, config in configs("paper=otov3", f"scale={scale}").items():
        rates = config.rates.mini[arm]
        assert (config.optimizer.lr, config.optimizer.weight_decay) == (rates.lr, rates.decay)
        if "penalty" in rates:
            assert config.method.penalty == rates.penalty


@pytest.mark.parametrize(
    ("scale", "parameters", "products", "groups"),
    [  # published, and groups as the widths have them
        ("full", 11_173_962, 555.42e6, 2_880),
        ("full_resnet50", 23_520_842, 1297.83e6, 11_456),
        ("full_vgg16", 15_253_578, 313.73e6, 5_248),
    ],
)
def test_full_scales_build_the_papers_networks(
    scale: str, parameters: int, products: float, groups: int
) -> None:
    with torch.device("meta"):
        module = built(f"scale={scale}", "arm=dhspg")
    structure = module._structure(module.model)
    assert isinstance(structure, Channels)
    nothing = torch.zeros(structure.blocks.count, dtype=torch.bool)
    assert sum(p.numel() for p in module.model.parameters()) == parameters
    assert structure.blocks.count == groups
    assert structure.products(nothing) == pytest.approx(products, rel=1e-4)


def test_full_schedules_fall_when_the_authors_do() -> None:
    for scale, epochs in (("full", [74, 149, 224]), ("full_imagenet", [58, 118, 178])):
        (*_, config) = configs("paper=otov3", f"scale={scale}", "arm=dhspg").values()
        falls = [m * config.training.epochs for m in config.schedule.milestones]
        assert falls == pytest.approx(epochs, abs=0.01)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["arm=dhspg", "method.score=bothh"], "Did you mean 'both'?"),
        (["arm=dhspg", "model=mlp", "model.hidden=[]"], "no channels in MLP"),
        (["arm=dhspg", "model=small_cnn", "method.mode=erasing"], "no operators in SmallCNN"),
    ],
)
def test_what_cannot_work_is_one_line(typed: list[str], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *SMOKE, *typed)


def test_the_method_prunes_another_papers_network(tmp_path: Path) -> None:
    typed = ["paper=man", "scale=smoke", "arm=bp", "method=otov3", "method.start=0"]
    run = finished(tmp_path, *typed, "seed=0", "method.penalty=10.0", "optimizer.lr=0.1")
    assert run.summary()["sparsity/groups"] > 0.3


def test_controls_choose_other_groups() -> None:
    runs = configs("paper=otov3", "scale=mini")
    knobs = {arm: dict(config.method) for arm, config in runs.items() if arm != "dense"}
    for one, other in itertools.combinations(("random", "random_within", "reversed"), 2):
        assert knobs[one] != knobs[other]
    assert runs["hspg_even"].method.candidates == "all"
    assert not runs["hspg_even"].method.adaptive
    assert runs["prox_even"].method.shrink == "proximal"
