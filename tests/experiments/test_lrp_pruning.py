"""What is special to this paper's room: what its numbers mean, and its networks at full scale."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repro.experiments.lrp_pruning.base import draw_classes, draw_examples, measure
from repro.experiments.lrp_pruning.iterative import Iterative
from repro.experiments.lrp_pruning.oneshot import Task
from rooms import configs, finished, logged, refusal, summaries
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.data.tables.suite import Suite
from repro.methods.lrp_pruning import FilterPruning
from repro.planning.instantiate import instantiate
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("lrp_pruning")
CPU = torch.device("cpu")


def module(arm: str, *typed: str, scale: str = "smoke") -> Any:
    """An arm's module, as at a scale."""
    return build_module(configs("paper=lrp_pruning", f"scale={scale}", f"arm={arm}", *typed)[arm])


class Fixed:
    """Scores that a test chose: of a draw's first reference, or always the same."""

    def __init__(self, *scores: list[float]) -> None:
        self.scores, self.calls = scores, 0

    def __call__(self, _network: Any, layers: Sequence[str], _batches: Any) -> dict[str, Tensor]:
        chosen = torch.tensor(self.scores[self.calls % len(self.scores)])
        self.calls += 1
        sizes = [len(chosen) // len(layers)] * len(layers)
        return dict(zip(layers, chosen.split(sizes), strict=True))


def one_shot(
    *scores: list[float], part: str = "moons", criterion: type[Fixed] = Fixed, **task: Any
) -> dict[str, float]:
    """What pruning finds by given scores, in a network of two hidden units for points of a plane.

    The network says class 0 where its first unit is on, which it is left of 0.5, and class 1
    elsewhere; its second unit is only on there, too, and does nothing. Of the criteria that ranks
    are compared with, weights rank the first unit higher, Taylor the second, the gradient as scores
    that two draws of three have.
    """
    found = planar()
    net = found.nets[part]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[1].weight[:, 0], net[1].bias[:] = -1.0, 0.5
        net[4].weight[0, 0], net[4].bias[1] = 1.0, 1e-6
    found.method = FilterPruning(criterion(*scores))
    first, second = [2.0, 1.0], [1.0, 2.0]
    others = {"weight": [first], "taylor": [second], "grad": [first, first, second]}
    found.against = {name: FilterPruning(Fixed(*each)) for name, each in others.items()}
    settings: dict[str, Any] = {"sizes": [1, 5, 10], "usual": 5, "draws": 2} | task
    found.tasks = {part: Task(part, **settings)}
    found.found = found.work(part)
    return logged(found, found.on_test_epoch_end)


def planar() -> Any:
    """The module with its networks, of two hidden units for points of a plane, and its data."""
    typed = ["toy.hidden=[2]", "widths.digits=[10]"]
    found = module("lrp", *typed)
    found.data = instantiate(
        configs("paper=lrp_pruning", "scale=smoke", "arm=lrp", *typed)["lrp"].dataset
    )
    found.setup("fit")
    return found


def right_of(x: Tensor, y: Tensor, constant: bool) -> float:
    """Accuracy of that network, or of one that always says class 1."""
    predicted = torch.ones_like(y) if constant else (x[:, 0] >= 0.5).long()
    return float((predicted == y).float().mean())


def points(part: str = "moons") -> Any:
    config = configs("paper=lrp_pruning", "scale=smoke", "arm=nets")["nets"]
    suite: Suite = instantiate(config.dataset)
    return suite.sets[part].splits


def test_accuracy_is_that_of_the_network_without_its_lowest_units() -> None:
    half: dict[str, Any] = {"rates": [0.5], "rate": 0.5, "noise": [0.0]}
    x, y = points()["train"]
    best, found = one_shot([2.0, 1.0], **half), one_shot([1.0, 2.0], **half)
    whole = right_of(x, y, constant=False)
    assert best["test/moons/unpruned_accuracy"] == pytest.approx(whole)
    assert best["test/moons/accuracy_n5"] == pytest.approx(whole)
    assert best["test/moons/accuracy_r50"] == pytest.approx(whole)
    assert found["test/moons/accuracy_n1"] == pytest.approx(0.5)
    assert whole > 0.6
    x, y = points()["test"]
    assert best["test/moons/noisy_accuracy_s0_n10"] == pytest.approx(right_of(x, y, constant=False))
    assert found["test/moons/pruned_share_layer1"] == 0.5
    assert found["test/moons/guarded"] == 0


class Twice(Fixed):
    """Asks the network twice before it says the same."""

    def __call__(self, network: Any, layers: Sequence[str], batches: Any) -> dict[str, Tensor]:
        for x, _ in batches:
            network(x + 0 * network(x)[:, :2])
        return super().__call__(network, layers, batches)


@pytest.mark.parametrize("part", ["moons", "circles", "spiral"])
def test_gains_overlaps_ranks_and_passes(part: str) -> None:
    """Three draws: right once by one reference, never by five, always by ten, twice by twenty."""
    good, bad = [2.0, 1.0], [1.0, 2.0]
    costed = good  # what scoring costs is counted by five references, in one more call
    drawn = [good, bad, bad, bad, bad, bad, costed, good, good, good, good, good, bad]
    sizes: dict[str, Any] = {
        "sizes": [1, 5, 10, 20],
        "draws": 3,
        "rates": [0.5],
        "rate": 0.5,
        "noise": [0.3],
    }
    found = one_shot(*drawn, part=part, criterion=Twice, **sizes)
    x, y = points(part)["train"]
    whole, chance = right_of(x, y, constant=False), right_of(x, y, constant=True)
    assert chance == (0.25 if part == "spiral" else 0.5) != whole
    x, y = points(part)["test"]
    noise = 0.3 * torch.randn(x.shape, generator=generator_for(0, 4, 0))
    noisy = right_of(x + noise, y, constant=False)
    # A pass is 4 + 2 C products forwards, and 4 + 4 C backwards: none to the points themselves.
    passes = {2: 16 / 20, 4: 24 / 32}[len(y.unique())]
    # Of three pairs of draws, one agrees on the unit that goes, and on all ranks.
    expected = {
        "moons": {
            "test/moons/accuracy_n1": (whole + 2 * chance) / 3,
            "test/moons/accuracy_n5": chance,
            "test/moons/gain": 2 / 3 * (whole - chance),
            "test/moons/noisy_accuracy_s30_n10": noisy,
            "test/moons/overlap_share_n20": 1 / 3,
            "test/moons/rank_self": -1 / 3,
            "test/moons/rank_with_weight": 1 / 3,
            "test/moons/rank_with_taylor": -1 / 3,
            "test/moons/rank_with_grad": 1,
            "test/moons/passes": passes,
        },
        "circles": {
            "test/circles/accuracy_n1": (whole + 2 * chance) / 3,
            "test/circles/accuracy_n5": chance,
            "test/circles/gain": 2 / 3 * (whole - chance),
            "test/circles/noisy_accuracy_s30_n10": noisy,
            "test/circles/overlap_share_n20": 1 / 3,
            "test/circles/rank_self": -1 / 3,
            "test/circles/rank_with_weight": 1 / 3,
            "test/circles/rank_with_taylor": -1 / 3,
            "test/circles/rank_with_grad": 1,
            "test/circles/passes": passes,
        },
        "spiral": {
            "test/spiral/accuracy_n1": (whole + 2 * chance) / 3,
            "test/spiral/accuracy_n5": chance,
            "test/spiral/gain": 2 / 3 * (whole - chance),
            "test/spiral/noisy_accuracy_s30_n10": noisy,
            "test/spiral/overlap_share_n20": 1 / 3,
            "test/spiral/rank_self": -1 / 3,
            "test/spiral/rank_with_weight": 1 / 3,
            "test/spiral/rank_with_taylor": -1 / 3,
            "test/spiral/rank_with_grad": 1,
            "test/spiral/passes": passes,
        },
    }[part]
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_accuracy_is_that_among_the_drawn_classes() -> None:
    """Ten units, one for each digit's only picture; without its unit a digit is the first drawn."""
    found = planar()
    net, data = found.nets["digits"], found.data.sets["digits"]
    x = torch.zeros_like(data.splits["test"][0][:10])
    x.flatten(1)[:, :10] = torch.eye(10)
    data.splits["test"] = (x, torch.arange(10))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[1].weight[:, :10] = net[4].weight[:] = torch.eye(10)
        net[4].bias[:] = -1e-3 * torch.arange(10)
    found.against, found.method = {}, FilterPruning(Fixed(list(map(float, range(10)))))
    rates: dict[str, Any] = {"sizes": [10], "usual": 10, "rates": [0.5, 0.7], "rate": 0.7}
    found.tasks = {"digits3": Task("digits", draws=4, classes=3, **rates)}
    found.found = found.work("digits3")
    logs = logged(found, found.on_test_epoch_end)
    drawn = [found._references("digits3", 10, draw)[1].tolist() for draw in range(4)]
    for removed, name in ((5, "test/digits3/accuracy_r50"), (7, "test/digits3/accuracy_r70")):
        right = [c >= removed or c == min(classes) for classes in drawn for c in classes]
        assert logs[name] == pytest.approx(sum(right) / 12)
    assert logs["test/digits3/accuracy_r50"] > logs["test/digits3/accuracy_r70"]


def test_overlaps_are_at_the_lowest_rate_and_guards_at_the_highest() -> None:
    """Two layers of two units; at the highest rate a layer's last unit is among the two lowest."""
    first, second = [0.0, 2.0, 3.0, 4.0], [3.0, 4.0, 1.0, 2.0]
    found = planar()
    found.nets["moons"] = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)
    )
    found.against, found.method = {}, FilterPruning(Fixed(first, first, first, second, first))
    rates: dict[str, Any] = {"rates": [0.25, 0.5], "rate": 0.25}
    found.tasks = {"moons": Task("moons", sizes=[1, 5], usual=5, draws=2, **rates)}
    found.found = found.work("moons")
    logs = logged(found, found.on_test_epoch_end)
    assert logs["test/moons/overlap_share_n5"] == 0  # at the other rate 1
    assert logs["test/moons/guarded"] == 1
    assert logs["test/moons/zero_share"] == (1 / 4 + 0) / 2
    assert logs["test/moons/pruned_share_layer1"] == (1 / 2 + 0) / 2
    assert logs["test/moons/pruned_share_layer2"] == (0 + 1 / 2) / 2


def stepwise(*scores: list[float]) -> Any:
    """The module of steps for a network that passes four classes' units on, two layers of four."""
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    for layer in layers[::2]:
        torch.nn.init.eye_(layer.get_parameter("weight"))
        torch.nn.init.zeros_(layer.get_parameter("bias"))
    unused: Any = None
    method = FilterPruning(Fixed(*scores))
    room: Any = Iterative(
        nn.Sequential(*layers), method, unused, unused, 0.25, 0.75, references=None
    )
    x, y = torch.eye(4), torch.arange(4)
    room.data = SimpleNamespace(
        classes=4,
        labels=lambda _: y,
        take=lambda _, chosen: (x[chosen], y[chosen]),
        test_dataloader=lambda: [(x, y)],
    )
    room.dense = copy.deepcopy(room.model.state_dict())
    return room


def test_steps_by_hand() -> None:
    """Two draws: one takes nearly all of the first layer first, one as much of both.

    Classes are right whose units are left in both layers, and the first one even without.
    """
    one, two = [0.4, 0.3, 0.2, 0.1, 4.0, 3.0, 2.0, 1.0], [8.0, 6.0, 4.0, 2.0, 7.0, 5.0, 3.0, 1.0]
    room = stepwise(one, one, one, two, two, two)
    room.tune_epochs = 1
    for draw in range(2):
        for number in range(3):
            room._prune(draw, number)
            room._measure(draw, number + 1)
    found = logged(room, room.on_test_epoch_end)
    curve = {"r0": 1.0, "r25": (2 + 3) / 8, "r50": (1 + 2) / 8, "r75": 1 / 4}
    assert {rate: found[f"test/accuracy_{rate}"] for rate in curve} == curve
    assert found["test/untuned_accuracy_r50"] == curve["r50"]
    assert found["test/area_accuracy"] == pytest.approx((1 / 2 + 5 / 8 + 3 / 8 + 1 / 8) / 3)
    # In the second and third step of the first draw the first layer's last unit is the lowest.
    assert found["test/guarded"] == pytest.approx((0 + 1 + 1) / 6)
    assert found["test/left_share_layer1"] == found["test/left_share_layer2"] == 1 / 4
    for rate, (a, b) in {"r25": (2, 4), "r50": (1, 3), "r75": (1, 1)}.items():  # of the first draw
        products = 4 * a + a * b + b * 4
        assert found[f"test/multiplications_{rate}"] == products
        assert found[f"test/parameters_{rate}"] == products + a + b + 4
    assert found["test/removal_gap"] < 1e-6


def test_the_gap_is_the_largest_between_silenced_and_smaller_networks() -> None:
    room, gaps = stepwise([0.4, 0.3, 0.2, 0.1, 4.0, 3.0, 2.0, 1.0]), iter([0.1, 0.3, 0.2])

    def shifted(model: nn.Module, _: Any) -> nn.Module:
        smaller: Any = copy.deepcopy(model)
        smaller[-1].bias.data += torch.tensor([0.05, 0.0, 0.0, -1.0]) * next(gaps)
        return smaller

    room.method.shrunk = shifted
    for number in range(3):
        room._prune(0, number)
        room._measure(0, number + 1)
    assert logged(room, room.on_test_epoch_end)["test/removal_gap"] == pytest.approx(0.3)


def test_noise_is_added_to_fresh_points() -> None:
    found = one_shot([2.0, 1.0], rates=[0.5], rate=0.5, noise=[0.3, 5.0])
    x, y = points()["test"]
    for number, s in enumerate((0.3, 5.0)):
        noise = s * torch.randn(x.shape, generator=generator_for(0, 4, number))
        expected = right_of(x + noise, y, constant=False)
        assert found[f"test/moons/noisy_accuracy_s{100 * s:.0f}_n10"] == pytest.approx(expected)


def test_smoke_has_ranks_and_costs_that_make_sense(study: Study) -> None:
    found = summaries(study)
    lrp, chance = found["lrp"], found["random"]
    assert abs(lrp["test/moons/rank_with_random"]) < 0.5 < lrp["test/moons/rank_self"]
    assert 0.8 < lrp["test/moons/passes"] < 1.2
    assert 0.5 < found["taylor"]["test/moons/passes"] < 0.8
    assert chance["test/moons/passes"] == 0
    assert lrp["test/digits3/unpruned_accuracy"] == chance["test/digits3/unpruned_accuracy"]


def test_steps_follow_what_the_network_loses(study: Study) -> None:
    found = summaries(study)
    dense = found["scarce_lrp"]["test/accuracy_r0"]
    assert dense == found["scarce_weight"]["test/accuracy_r0"]
    for arm in ("scarce_lrp", "scarce_weight", "tuned_lrp"):
        summary = found[arm]
        curve = [summary[f"test/accuracy_r{r}"] for r in (0, 30, 60)]
        area = (curve[0] / 2 + curve[1] + curve[2] / 2) / 2
        assert summary["test/area_accuracy"] == pytest.approx(area)
        assert summary["test/removal_gap"] < 1e-5
        left = sum(summary[f"test/left_share_layer{k}"] * n for k, n in ((1, 4), (2, 6), (3, 6)))
        assert left == pytest.approx(16 - 10)  # 60 %
        sizes = [summary[f"test/parameters_r{r}"] for r in (30, 60)]
        assert sizes == sorted(sizes, reverse=True)
    assert (
        found["tuned_lrp"]["test/accuracy_r30"] != found["tuned_lrp"]["test/untuned_accuracy_r30"]
    )
    assert found["tuned_lrp"]["test/final_accuracy"] == found["tuned_lrp"]["test/accuracy_r60"]


def test_the_control_keeps_all_and_is_trained_as_long(study: Study, tmp_path: Path) -> None:
    typed = ["paper=lrp_pruning", "scale=smoke", "seed=0", "arm=tuned_none", "rates.none=0.01"]
    run = finished(tmp_path, *typed)
    summary, pruned = run.summary(), summaries(study)["tuned_lrp"]
    assert summary["test/left_share_layer1"] == 1
    assert summary["steps"] == pruned["steps"]
    assert summary["test/accuracy_r0"] == pruned["test/accuracy_r0"]
    assert summary["test/accuracy_r60"] > pruned["test/accuracy_r60"]


def test_classes_and_examples_are_drawn() -> None:
    labels = torch.arange(30) % 5
    classes = draw_classes(5, 3, generator_for(0))
    chosen = draw_examples(labels, classes, 4, generator_for(1))
    assert len(classes.unique()) == 3
    assert labels[chosen].tolist() == [c for c in classes.tolist() for _ in range(4)]
    assert len(chosen.unique()) == 12
    assert draw_classes(5, None, generator_for(0)).tolist() == [0, 1, 2, 3, 4]


def test_a_measure_knows_of_some_classes_alone() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0], [0.0, 9.0, 1.0]])
    model = nn.Identity().train()
    found = measure(model, [(logits, torch.tensor([2, 2, 0]))], torch.tensor([1, 2]), CPU)
    expected = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).log_softmax(1)[:, 1].neg().mean()
    assert found == (0.5, pytest.approx(float(expected)))
    assert model.training


@pytest.mark.parametrize(
    ("scale", "arm", "parameters", "filters", "count"),
    [
        ("full", "tuned_lrp", 11_173_962, 4_800, 240),
        ("full_resnet50", "tuned_lrp_released", 23_520_842, 26_560, 1_328),
        ("full_vgg16_cats", "tuned_lrp", 134_268_738, 4_224, 211),
        ("full_scarce", "scarce_lrp", 138_357_544, 4_224, 211),
    ],
)
def test_full_has_the_papers_networks_and_steps(
    scale: str, arm: str, parameters: int, filters: int, count: int
) -> None:
    with torch.device("meta"):
        found = module(arm, scale=scale)
    assert sum(each.numel() for each in found.model.parameters()) == parameters
    assert (found.method.total, found._due(0), found.steps) == (filters, count, 18)


def test_the_full_toy_is_as_published() -> None:
    found = configs("paper=lrp_pruning", "scale=full_toy", "arm=[nets,lrp]")
    config = found["nets"]
    assert config.model.hidden == [1000, 1000, 1000]
    assert (config.model.last_relu, config.optimizer.momentum, config.optimizer.lr) == (
        False,
        0.9,
        0.001,
    )
    assert config.dataset.sets.spiral.batch_size == 4000
    assert found["lrp"].method.criterion.start == "true_logit"
    assert found["lrp"].procedure.tasks.moons.draws == 50


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("arm=lrp method=gradient_noise", "GradientNoise is a method of training"),
        ("arm=nets method=gradient_noise", "cannot use GradientNoise"),
        ("arm=lrp oneshot.tasks.moons.data=sun", "the sets are moons, circles, spiral, digits"),
        ("arm=lrp oneshot.tasks.moons.usual=3", "usual is one of sizes"),
        ("arm=tuned_lrp iterative.draws=2", "say classes=null and draws=1"),
        ("arm=scarce_lrp method.units=neurons", "has no neurons that could go"),
        ("arm=network network.trained=[tail]", "no parameter's name begins with any of"),
    ],
)
def test_a_bad_choice_is_one_line(typed: str, complaint: str, tmp_path: Path) -> None:
    start = ["paper=lrp_pruning", "scale=smoke", "seed=0", "from=null"]
    assert complaint in refusal(tmp_path, *start, *typed.split())


def test_streamed_photographs_with_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is trained, filters are scored in chunks, one step and one update, on 24 images."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    small = ["model.stages=[[4],[4]]", "model.hidden=[4]", "dataset.input_shape=[3,16,16]"]
    config = configs("paper=lrp_pruning", "scale=full_vgg16_cats", "arm=network", *small)["network"]
    published = instantiate(config.model, classes=7)
    torch.save({f"x.{k}": v for k, v in published.state_dict().items()}, tmp_path / "w.pth")
    write_photographs(tmp_path / "microsoft" / "cats_vs_dogs" / "data")
    sizes = [
        "dataset.val_size=4",
        "dataset.test_size=6",
        "dataset.batch_size=7",
        "dataset.workers=0",
    ]
    typed = [
        *(
            "paper=lrp_pruning",
            "scale=full_vgg16_cats",
            "arm=tuned_taylor",
            "seed=0",
            *small,
            *sizes,
        ),
        *(f"data.root={tmp_path}", f"base.file={tmp_path}/w.pth", "network.trained=[units.2,head]"),
        *(
            "hardware=cpu",
            "epochs=1",
            "tuning.share=0.3",
            "iterative.goal=0.6",
            "tuning.epochs=1",
            "tuning.final_epochs=0",
        ),
        "iterative.chunk=5",
    ]
    run = finished(tmp_path / "runs", *typed)
    summary = run.summary()
    assert summary["test/removal_gap"] < 1e-4
    assert 0 <= summary["test/accuracy_r30"] <= 1


def write_photographs(folder: Path) -> None:
    """24 pictures of two classes, as the hub's file has them."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    folder.mkdir(parents=True)
    draw, cells = np.random.default_rng(0), []
    for _ in range(24):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)).save(buffer, "JPEG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": cells, "labels": [i % 2 for i in range(24)]})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet")
