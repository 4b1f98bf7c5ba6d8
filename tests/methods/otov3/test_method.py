"""Steps against the authors' update, group by group; zeros that stay; what is cut out."""

from __future__ import annotations

import copy
import doctest
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods import otov3
from repro.methods.otov3 import SCORES, Channels, Evidence, SparseTraining
from repro.models.vision.even_resnet import EvenResNet
from repro.toolbox.costs import multiply_accumulates

Factory = Callable[..., torch.optim.Optimizer]
SGD: Factory = partial(torch.optim.SGD, lr=0.1)
X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(32) % 4


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).double()  # fmt: skip


class Loop:
    """A plain loop of full-batch steps."""

    def __init__(self, model: nn.Module, method: SparseTraining, factory: Factory = SGD) -> None:
        self.model, self.method = model, method
        method.attach(model)
        self.optimizer = method.optimizer(model, factory)

    def step(self, epoch: int = 0) -> None:
        self.method.start_epoch(epoch)
        self.optimizer.zero_grad()
        self.method.backward(
            lambda b: F.cross_entropy(self.model(b[0]), b[1]), (X, Y), Tensor.backward
        )
        self.method.before_step(self.model)
        self.optimizer.step()
        self.method.after_step(self.model)


def rows_of_channel(model: nn.Module, layer: str, channel: int) -> list[Tensor]:
    """The parameters of a channel of `network`, by hand."""
    owners = {"0": ["0.weight", "0.bias", "1.weight", "1.bias"], "3": ["3.weight", "3.bias"]}
    parameters = dict(model.named_parameters())
    return [parameters[name][channel] for name in owners[layer]]


def flat(model: nn.Module) -> list[Tensor]:
    """Every channel as one vector, in the order of the method's groups."""
    sizes = {"0": 6, "3": 8}
    return [
        torch.cat([part.detach().flatten() for part in rows_of_channel(model, layer, channel)])
        for layer, size in sizes.items()
        for channel in range(size)
    ]


def authors_lambda(x: Tensor, g: Tensor, base: float, amplify: float, hat: float) -> float:
    """Section C, step 4, for one group."""
    inner, length = float(x @ g), float(x.norm())
    if inner >= 0:
        return base
    low, high = -inner / length, -float(g @ g) * length / inner
    chosen = min(max(amplify * low, base), base * hat)
    return (low + high) / 2 if chosen >= high else chosen


@pytest.mark.parametrize(
    ("factory", "direction"),
    [
        (partial(torch.optim.SGD, lr=0.1, weight_decay=0.01), "plain"),
        (partial(torch.optim.SGD, lr=0.05, momentum=0.9), "momentum"),
        (partial(torch.optim.Adam, lr=0.01), "adam"),
    ],
)
def test_steps_are_those_of_the_authors(factory: Factory, direction: str) -> None:
    """The direction g of the plain optimizer comes from a copy that takes its step alone."""
    base = 0.3 / factory.keywords["lr"]  # type: ignore[attr-defined]
    method = SparseTraining(0.4, start=0, penalty=base, tolerance=0.1, epsilon=0.9)
    loop = Loop(network(), method, factory)
    zero: set[int] = set()
    chosen: list[int] = []
    lr = loop.optimizer.param_groups[0]["lr"]
    for count in range(25):
        plain = copy.deepcopy(loop.model)
        optimizer = factory(plain.parameters())
        optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
        F.cross_entropy(plain(X), Y).backward()
        before = flat(plain)
        optimizer.step()
        moved = [(old - new) / lr for old, new in zip(before, flat(plain), strict=True)]
        if count == 0:
            chosen = authors_partition(before, moved, math.floor(14 * 0.5))
        expected = flat(plain)
        if len(zero) < 0.4 * 14:
            for number in [each for each in chosen if each not in zero]:
                x, g = before[number], moved[number]
                weight = authors_lambda(x, g, base, 2.0, 10.0)
                trial = x - lr * (g + weight * x / (x.norm() + 1e-8))
                if float(trial @ x) < 0.9 * float(x @ x):
                    zero.add(number)
                expected[number] = trial
        for number in zero:
            expected[number] = torch.zeros_like(before[number])
        loop.step()
        for number, (found, right) in enumerate(zip(flat(loop.model), expected, strict=True)):
            assert torch.allclose(found, right, atol=1e-7), (direction, count, number)
    assert zero
    assert method.zero is not None
    assert set(method.zero.nonzero().flatten().tolist()) == zero


def authors_partition(x: list[Tensor], g: list[Tensor], count: int) -> list[int]:
    """Half the cosine over the norm of all cosines, half the inverse mean magnitude over its."""
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, g, strict=True)]
    inverse = [1 / (float(a.norm()) / a.numel() + 1e-6) for a in x]
    score = [
        0.5 * c / math.hypot(*cosines) + 0.5 * m / math.hypot(*inverse)
        for c, m in zip(cosines, inverse, strict=True)
    ]
    best = sorted(range(len(x)), key=lambda number: -score[number])[:count]
    for layer in (range(6), range(6, 14)):  # at least one stays
        if all(number in best for number in layer):
            best.remove(min(layer, key=lambda number: score[number]))
    return best


def evidence(x: Tensor, g: Tensor) -> Evidence:
    """Of groups (G, n)."""
    sizes = torch.full((len(x),), float(x.shape[1]))
    sums = (x.square().sum(1), (x * g).sum(1), g.square().sum(1), sizes)
    return Evidence(*sums, torch.Generator().manual_seed(0))


def test_the_adaptive_penalty_shortens_groups_and_descends() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(200, 5, generator=generator) for _ in range(2))
    method = SparseTraining(penalty=1e-3, amplify=1.5, bound=1e6)
    weights = method._lambdas(evidence(x, g))
    d = -(g + weights[:, None] * x / x.norm(dim=1, keepdim=True))
    grows = (x * g).sum(1) < 0
    assert 50 < grows.sum() < 150
    assert ((d * x).sum(1)[grows] < 0).all()
    assert ((d * g).sum(1)[grows] < 0).all()
    assert (weights[~grows] == 1e-3).all()


def test_scores_call_what_shrinks_and_what_is_small_redundant() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.1, 0.0]])
    known = evidence(x, torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0]]))
    assert SCORES["cosine"](known).argsort(descending=True).tolist() == [0, 2, 1]
    for name in ("magnitude", "rms"):
        assert SCORES[name](known).argmax() == 2
    assert torch.equal(SCORES["reversed"](known), -SCORES["both"](known))
    assert SCORES["five"](known).argmax() == 2
    # Ten times the entries, all of the same size: no more redundant, by the mean or its square's.
    wide = Evidence(*(torch.tensor([1.0, 10.0]),) * 3, torch.tensor([1.0, 10.0]), known.generator)
    assert SCORES["rms"](wide)[0] == SCORES["rms"](wide)[1]
    assert SCORES["magnitude"](wide)[0] < SCORES["magnitude"](wide)[1]


def test_five_measures_by_hand() -> None:
    """Groups of norms 5 and 1; the step takes from the first alone."""
    x, g = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    longer, shorter = 5 / 26**0.5, 1 / 26**0.5  # of the norms, and of the means
    turned = 1.16**0.5  # the norm of 1 - cos, which are 0.4 and 1
    expected = [-0.2 * (2 * longer + 0.4 / turned + 1 + 1), -0.2 * (2 * shorter + 1 / turned)]
    assert SCORES["five"](evidence(x, g)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "expected"), [("erasing", 3), ("pruning", 6)])
def test_erasing_averages_scores_and_pruning_takes_the_last(mode: Any, expected: float) -> None:
    method = SparseTraining(mode=mode, smoothing=0.75)
    for score in (2.0, 6.0):
        method._average(torch.tensor([score]))
    assert method.scores is not None
    assert method.scores.tolist() == [expected]


def scaled(**knobs: Any) -> tuple[Any, list[list[float]]]:
    """A method of three groups, the last of which stays, and what they are multiplied by."""
    method: Any = SparseTraining(**knobs)
    method.lr, method.zero = 0.5, torch.zeros(3, dtype=torch.bool)
    found: list[list[float]] = []
    blocks = SimpleNamespace(scale_=lambda factors: found.append(factors.tolist()))
    method.structure = SimpleNamespace(blocks=blocks)
    return method, found


def test_a_proximal_step_shortens_what_the_step_left() -> None:
    """By 0.5 x 0.4 each: (3, 4) after a step of (1/2, 0), and what was shorter is zero."""
    method, found = scaled(shrink="proximal", penalty=0.4)
    x = torch.tensor([[3.0, 4.0], [0.1, 0.0], [3.0, 4.0]])
    g = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    method._contract(evidence(x, g), torch.tensor([True, True, False]))
    assert found == [[pytest.approx(1 - 0.2 / math.hypot(2.5, 4)), 0, 1]]
    assert method.zero.tolist() == [False, True, False]


def test_fading_ends_with_zero_in_equal_steps() -> None:
    method, found = scaled(shrink="gradual", over=4)
    zero = []
    for _ in range(4):
        method._fade(torch.tensor([True, True, False]))
        zero.append(method.zero.tolist())
    assert found == [[pytest.approx(f), pytest.approx(f), 1] for f in (3 / 4, 2 / 3, 1 / 2, 0)]
    assert zero == 3 * [[False] * 3] + [[True, True, False]]


@pytest.mark.parametrize(("epsilon", "lr_lambda", "projected"), [
    (0.0, 0.9, False), (0.0, 1.1, True), (0.5, 0.6, True), (0.5, 0.4, False),
])  # fmt: skip
def test_the_half_space(epsilon: float, lr_lambda: float, projected: bool) -> None:
    """A group of norm 1 without gradient is shortened by lr lambda."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2)).double()
    with torch.no_grad():
        first: Any = model[0]
        first.weight.copy_(F.normalize(torch.randn(3, 4).double(), dim=1))
    method = SparseTraining(0.9, start=0, penalty=lr_lambda / 0.1, adaptive=False, epsilon=epsilon, candidates="all")  # fmt: skip # noqa: E501
    method.attach(model)
    optimizer = method.optimizer(model, SGD)
    method.find(torch.zeros(2, 4).double())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.before_step(model)
    optimizer.step()
    method.after_step(model)
    left = 0.0 if projected else 1 - lr_lambda
    assert torch.allclose(first.weight.norm(dim=1), torch.full((3,), left).double(), atol=1e-6)


def test_a_target_of_nothing_is_the_plain_optimizer_bit_for_bit() -> None:
    plain, sparse = network(), network()
    loop = Loop(sparse, SparseTraining(target=0.0, start=0), partial(SGD, momentum=0.9))
    optimizer = SGD(plain.parameters(), momentum=0.9)
    for _ in range(3):
        loop.step()
        optimizer.zero_grad()
        F.cross_entropy(plain(X), Y).backward()
        optimizer.step()
    for one, other in zip(plain.parameters(), sparse.parameters(), strict=True):
        assert torch.equal(one, other)


def trained(**knobs: Any) -> Loop:
    settings = {"target": 0.5, "start": 1, "penalty": 3.0, "epsilon": 0.9} | knobs
    factory = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    loop = Loop(network(), SparseTraining(**settings), factory)
    for count in range(30):
        loop.step(epoch=count // 5)
    return loop


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"candidates": "all", "adaptive": False, "start": 0, "project_from": 2, "penalty": 1.0},
        {"candidates": "all", "shrink": "proximal"},
        {"shrink": "at_once", "score": "rms"},
        {"shrink": "gradual", "over": 10, "score": "five"},
        {"within": True, "adaptive": False},
    ],
)
def test_the_target_is_met_and_zeros_stay(knobs: dict[str, Any]) -> None:
    loop = trained(**knobs)
    assert loop.method.structure is not None
    zero = loop.method.structure.zero()
    assert 7 <= int(zero.sum()) <= 9  # of 14; one step may zero more than the last
    if knobs.get("candidates") != "all":
        assert int(zero.sum()) == 7  # the layers keep what they must; no more than G_p
    loop.step(epoch=7)
    assert torch.equal(loop.method.structure.zero(), zero)
    assert loop.method.metrics()["sparsity/groups"] == pytest.approx(float(zero.double().mean()))


def test_a_penalty_without_projection_leaves_no_zeros() -> None:
    assert trained(shrink="none").method.metrics()["sparsity/groups"] == 0


def test_penalties_that_do_not_stop_pass_the_target() -> None:
    assert trained(candidates="all", stop=False).method.metrics()["sparsity/groups"] > 0.6


def test_what_is_extracted_computes_the_same() -> None:
    loop = trained()
    loop.model.eval()
    smaller = loop.method.extract().eval()
    assert torch.allclose(smaller(X), loop.model(X), atol=1e-12)
    parameters = [sum(p.numel() for p in each.parameters()) for each in (smaller, loop.model)]
    assert parameters[0] < 0.7 * parameters[1]
    norm: Any = loop.model.get_submodule("1")
    with torch.no_grad():  # had the biases of norms stayed out of the groups
        norm.bias[norm.bias == 0] = 0.1
    assert not torch.allclose(smaller(X), loop.model(X), atol=1e-3)


def test_counted_products_are_those_of_the_extracted_network() -> None:
    model = EvenResNet([1, 8, 8], 10, width=6)
    structure = Channels(model, torch.zeros(2, 1, 8, 8))
    generator = torch.Generator().manual_seed(3)
    zero = torch.rand(24, generator=generator) < 0.4
    smaller = structure.extract(model, zero)
    assert structure.products(zero) == multiply_accumulates(smaller, torch.zeros(1, 1, 8, 8))
    whole = multiply_accumulates(model, torch.zeros(1, 1, 8, 8))
    assert structure.share(zero) == pytest.approx(1 - structure.products(zero) / whole)


def test_the_target_can_be_a_share_of_products() -> None:
    for target in (0.3, 0.6):
        method = trained(measure="products", shrink="at_once", score="rms", target=target).method
        assert isinstance(method.structure, Channels)
        assert method.scores is not None
        possible = [
            method.structure.share(method.structure.redundant(method.scores, count))
            for count in range(14)
        ]
        best = min(possible, key=lambda share: abs(share - target))
        assert method.removed() == pytest.approx(best)


def test_a_step_projects_no_more_than_a_share_of_products_asks() -> None:
    knobs: dict[str, Any] = {"candidates": "all", "adaptive": False, "penalty": 30.0, "target": 0.4}
    removed = [trained(measure=each, **knobs).method for each in ("groups", "products")]
    groups, products = (method.structure.share(method.zero) for method in removed)  # type: ignore[union-attr,arg-type]
    assert 0.4 <= products < 0.55 < groups


@pytest.mark.parametrize(("least", "multiple", "kept"), [(1, 1, [1, 4]), (2, 1, [2, 4]), (1, 4, [4, 4])])  # fmt: skip # noqa: E501
def test_no_layer_is_emptied(least: int, multiple: int, kept: list[int]) -> None:
    structure = Channels(network(), X, least, multiple)
    score = torch.arange(14.0, 0, -1)  # the first layer's six are the most redundant
    chosen = structure.redundant(score, 10)
    assert list(structure.widths(chosen).values()) == kept
    shuffled = structure.shuffled(chosen, torch.Generator().manual_seed(0))
    assert list(structure.widths(shuffled).values()) == kept
    assert not torch.equal(shuffled, chosen)


def test_layers_without_channels_are_counted() -> None:
    """Of six channels and eight: five, six or all fourteen are gone."""
    structure = Channels(network(), X)
    assert [structure.emptied(torch.arange(14) < gone) for gone in (5, 6, 14)] == [0, 1, 2]


def test_a_resumed_run_goes_on_as_if_nothing_had_been() -> None:
    loop, knobs = trained(), {"target": 0.5, "start": 1, "penalty": 3.0, "epsilon": 0.9}
    other = Loop(copy.deepcopy(loop.model), SparseTraining(**knobs), SGD)  # type: ignore[arg-type]
    other.method.load_state_dict(copy.deepcopy(loop.method.state_dict()))
    other.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    for each in (loop, other):
        each.step(epoch=6)
    for one, same in zip(loop.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, same)


def test_what_cannot_work_is_one_line() -> None:
    with pytest.raises(UserError, match="no channels in Linear"):
        Channels(nn.Linear(4, 2), torch.zeros(2, 4))
    with pytest.raises(UserError, match=r"method\.mode=erasing"):
        SparseTraining(mode="erasing", measure="products")
    method = SparseTraining()
    method.attach(network())
    with pytest.raises(UserError, match="first batch"):
        method.extract()


def test_an_extracted_network_goes_through_onnx(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    loop = trained()
    smaller = loop.method.extract().eval().float()
    file = str(tmp_path / "smaller.onnx")
    torch.onnx.export(smaller, (X.float(),), file, dynamo=True)
    session = runtime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    assert torch.allclose(torch.tensor(found), smaller(X.float()), atol=1e-5)


def test_an_extracted_network_is_saved_and_loaded_as_a_program(tmp_path: Any) -> None:
    smaller = trained().method.extract().eval()
    torch.export.save(torch.export.export(smaller, (X,)), tmp_path / "smaller.pt2")
    loaded = torch.export.load(tmp_path / "smaller.pt2").module()
    assert torch.allclose(loaded(X), smaller(X), atol=1e-12)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(otov3).failed == 0
