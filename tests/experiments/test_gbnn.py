"""What is special to gradient-boosted networks: cutting, the official grids, single data sets."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import same_after_a_kill
from repro.experiments.gbnn import module as gbnn_module
from repro.experiments.gbnn import tries as gbnn_tries
from repro.experiments.gbnn.module import Comparison
from repro.experiments.gbnn.tries import (
    JOINT_KNOBS,
    Boosted,
    Joint,
    Rivals,
    Task,
    expand,
    joint_rivals,
)
from rooms import configs, finished, plan, refusal, summaries
from torch import Tensor, nn

from repro.claims.outcomes import Verdict
from repro.claims.studies import judge_study
from repro.errors import UserError
from repro.methods.gbnn import GradientBoosting
from repro.models.toys.mlp import MLP
from repro.records.papers import load_paper
from repro.records.study import Study
from repro.training.execute import build_module

PAPER = load_paper("gbnn")


def test_smoke_runs_and_cuts(study: Study) -> None:
    found = summaries(study)
    for arm in ("gbnn", "nn_adam", "nn_lbfgs"):
        assert set(PAPER.report) <= found[arm].keys()
    assert found["gbnn"]["test/merge_error"] < 1e-9
    assert 0.2 < found["gbnn"]["test/cost_of_a_quarter"] <= 0.25
    for arm in ("cnn_gbnn", "cnn_refit"):
        assert found[arm]["test/accuracy"] > 0.8  # the backbone came with its weights
    verdicts = {verdict.id: verdict.verdict for verdict in judge_study(study)}
    assert verdicts["C4"] is Verdict.SUPPORTED


def test_images_start_from_the_trained_backbone() -> None:
    runs = plan("paper=gbnn", "scale=full_images").runs
    assert [run.parent for run in runs] == [None, "resnet"]


def test_full_has_the_budget_and_the_grid_of_the_official_code() -> None:
    runs = configs("paper=gbnn", "scale=full")
    assert (runs["gbnn"].method.units, runs["gbnn"].method.iterations) == (200, 200)
    for arm in ("gbnn", "nn_adam", "nn_lbfgs", "nn_sgd", "nn_deep"):
        module: Any = build_module(runs[arm])
        known = JOINT_KNOBS if arm != "gbnn" else ("per_step", "shrinkage", "subsample")
        assert len(expand(module.comparison.tries, known)) == 80


def test_a_killed_search_by_lbfgs_ends_with_the_same_numbers(tmp_path: Path) -> None:
    typed = [
        "arm=nn_lbfgs", "seed=0", "training.epochs=6", "~dataset.sets.breast_cancer",
        "dataset.split=7", "module.comparison.shares=[25]", "optimizer.max_iter=3",
    ]  # fmt: skip
    same_after_a_kill(tmp_path, 3, "paper=gbnn", "scale=smoke", *typed)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("method.shrinkage=0", "shrinkage lies in"),
        ("module.comparison.grid=bosting", "Did you mean 'boosting'"),
        ("module.comparison.shares=[0]", "shares lie between"),
        ("module.comparison.grids.boosting=[{lr:1}]", "a try sets 'lr'"),
        ("method=dgc +optimizer.momentum=0.9 +optimizer.nesterov=false", "work with arm=cnn"),
        ("dataset=iris", "dataset.batch_size"),
    ],
)
def test_a_bad_knob_is_one_line(tmp_path: Path, typed: str, complaint: str) -> None:
    base = ["paper=gbnn", "scale=mini", "module.comparison.seed=0", "arm=gbnn", "seed=0"]
    assert complaint in refusal(tmp_path, *base, *typed.split())


def test_a_single_data_set_works_when_it_comes_whole(tmp_path: Path) -> None:
    typed = [
        "arm=gbnn", "seed=0", "dataset=iris", "dataset.batch_size=1000",
        "dataset.eval_batch_size=1000", "method.units=6", "method.iterations=20",
    ]  # fmt: skip
    summary = finished(tmp_path, "paper=gbnn", "scale=mini", *typed).summary()
    assert summary["test/accuracy/iris"] > 0.8
    assert summary["steps"] == 6  # as many as blocks of one unit


def test_tasks_measure_what_they_should() -> None:
    labels, logits = torch.tensor([0, 1, 1, 0]), torch.tensor([[-1.0], [2.0], [-3.0], [-1.0]])
    binary = Task.of(labels)
    assert (binary.measure, binary.outputs) == ("accuracy", 2)
    assert binary.score(logits, labels) == 0.75
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(binary.loss(logits, labels), binary.loss(two, labels))
    regression = Task.of(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert regression.measure == "rmse"
    assert regression.score(torch.tensor([[1.0], [2.0], [3.0], [2.0]]), logits.new_tensor([[1], [2], [3], [4]])) == 1  # fmt: skip  # noqa: E501
    outputs, targets = logits.new_tensor([[1], [2], [3], [0]]), logits.new_tensor([1, 2, 3, 4])
    assert regression.loss(outputs, targets) == 0.5 * 4**2 / 4
    with pytest.raises(UserError, match="a try sets 'lr'"):
        expand([{"lr": 1}], ["alpha"])


@pytest.mark.parametrize(("batch", "kept"), [(None, [0.8]), (1, [0.6, 0.6])])
def test_weights_decay_by_alpha_over_the_examples_of_a_batch(
    batch: int | None, kept: list[float]
) -> None:
    """A weight of 3 that changes no output, with 0.1 (4/n) of it lost at a step; no bias is."""
    model = nn.Linear(1, 1).double()
    nn.init.constant_(model.weight, 3.0)
    nn.init.ones_(model.bias)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    rivals = Joint([model], [sgd], [4.0], Task(None), batch, seed=0)
    loss = rivals.step(torch.zeros(2, 1), torch.ones(2, 1).double(), 0)
    before, after = 3.0 * float(np.prod(kept[:-1])), 3.0 * float(np.prod(kept))
    assert float(loss) == pytest.approx(4.0 / (batch or 2) * before**2 / 2)
    assert (model.weight.item(), model.bias.item()) == (pytest.approx(after), 1)


def test_a_width_is_that_of_every_hidden_layer() -> None:
    build = partial(MLP, hidden=[5, 5], activation="relu")
    tries: Any = [{"width": 3, "lr": 0.1}, {"lr": 0.1}]
    rivals = joint_rivals(build, torch.optim.SGD, tries, Task(4), 2, 0.0, None, 0)
    sizes = [[part.out_features for part in model.modules() if isinstance(part, nn.Linear)]
        for model in rivals.models]  # fmt: skip
    assert sizes == [[3, 3, 4], [5, 5, 4]]


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The room's module, about to test one data set called ``set``."""
    (config,) = configs("paper=gbnn", "scale=smoke", "arm=nn_adam").values()
    module: Any = build_module(config)
    module.comparison.shares, module.comparison.random_orders = (25,), 2
    module.logged = {}
    monkeypatch.setattr(Comparison, "log_dict", lambda self, found, **_: self.logged.update(found))
    monkeypatch.setattr(gbnn_module, "refit_output", lambda model, *_: model)
    module.choice, module.by_width = {"set": 0}, {"set": {}}
    return module


class Given(Rivals):
    """Networks that are there already: one a try, whatever the number of units."""

    size = 1

    def __init__(self, *networks: nn.Module, cuttable: bool) -> None:
        super().__init__()
        self.networks, self.cuttable = nn.ModuleList(networks), cuttable

    def step(self, x: Tensor, y: Tensor, tick: int) -> Tensor:
        """Nothing is trained."""
        return torch.zeros(())

    def network(self, index: int, units: int | None = None) -> nn.Module:
        """The try's."""
        return self.networks[index]

    def units(self, index: int) -> int:
        """Eight each."""
        return 8


def eight_units(hidden: list[float], output: list[list[float]], bias: list[float]) -> nn.Module:
    """A network of one input and eight rectified units: their weights, and those of outputs."""
    model: Any = MLP([1], len(output), [8], "relu").double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(hidden).unsqueeze(1))
        model[1].bias.zero_()
        model[3].weight.copy_(torch.tensor(output))
        model[3].bias.copy_(torch.tensor(bias))
    network: nn.Module = model
    return network


def outcome_of(module: Any, rivals: Rivals, x: Tensor, y: Tensor) -> dict[str, float]:
    """What a test logs of rivals on these examples."""
    module.rivals["set"], module.tasks = rivals, {"set": Task.of(y)}
    module._whole = lambda split: {"set": (x, y)}
    module.test_step({"set": (x, y)}, 0)
    logged: dict[str, float] = module.logged
    return logged


def test_accuracy_drops_by_what_the_units_that_are_off_knew(
    comparison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units 0 and 1 speak for class 1 at x > 0, the others for class 0 at x < 0; else class 1."""
    model = eight_units(
        [1.0] * 2 + [-1.0] * 6, [[0.0] * 2 + [1.0] * 6, [1.0] * 2 + [0.0] * 6], [0.0, 0.1]
    )
    orders = {
        "norm": [[6, 7, 5, 4, 3, 2, 1, 0]],
        "random": [[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7, 0, 1]],
    }
    monkeypatch.setattr(
        gbnn_module,
        "order_units",
        lambda model, name, generator: torch.tensor(orders[name].pop(0)),
    )
    x, y = torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]), torch.tensor([1, 1, 0, 0])
    logged = outcome_of(comparison, Given(model, cuttable=True), x, y)
    assert logged["test/accuracy"] == 1
    assert logged["test/first/25/accuracy_drop"] == 0.5  # x < 0 is taken for class 1
    assert logged["test/random/25/accuracy_drop"] == 0.25  # one order of two
    assert logged["test/norm/25/accuracy_drop"] == 0


def test_each_set_has_its_own_accuracies(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network, whose first quarter says class 1 always, on shares of ¾, ½ and ¼ of it."""
    monkeypatch.setattr(
        gbnn_module, "order_units", lambda model, name, generator: torch.arange(8).flip(0)
    )
    model = eight_units(
        [1.0] * 2 + [-1.0] * 6, [[0.0] * 2 + [1.0] * 6, [1.0] * 2 + [0.0] * 6], [0.0, 0.1]
    )
    x = {
        "wine": torch.tensor([[1.0], [2.0], [3.0], [-1.0]]),
        "digits": torch.tensor([[1.0], [2.0], [-3.0], [-1.0]]),
        "breast_cancer": torch.tensor([[1.0], [-2.0], [-3.0], [-1.0]]),
    }
    # Of breast_cancer one label is not what the network says.
    sets = {name: (each, (each[:, 0] > 0).long()) for name, each in x.items()}
    sets["breast_cancer"][1][1] = 1
    for name, (_, y) in sets.items():
        comparison.rivals[name], comparison.tasks[name] = Given(model, cuttable=True), Task.of(y)
        comparison.choice[name], comparison.by_width[name] = 0, {}
    comparison._whole = lambda split: sets
    comparison.test_step(sets, 0)
    logged = comparison.logged
    assert logged["test/accuracy/wine"] == logged["test/accuracy/digits"] == 1
    assert logged["test/accuracy/breast_cancer"] == 3 / 4
    assert logged["test/accuracy"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert logged["test/first/25/accuracy/wine"] == 3 / 4
    assert logged["test/first/25/accuracy/digits"] == 2 / 4
    assert logged["test/first/25/accuracy/breast_cancer"] == 2 / 4
    assert logged["test/first/25/accuracy_drop"] == pytest.approx((1 / 4 + 2 / 4 + 1 / 4) / 3)


class Grown(Boosted):
    """A network that was boosted, of eight units, and another for all smaller budgets."""

    size = 1

    def __init__(self, whole: nn.Module, part: nn.Module) -> None:
        Rivals.__init__(self)
        self.whole, self.part = whole, part

    def network(self, index: int, units: int | None = None) -> nn.Module:
        """The whole one, or that of fewer units."""
        return self.whole if units is None else self.part

    def units(self, index: int) -> int:
        """Eight."""
        return 8


def test_the_first_units_of_a_boosted_network_are_its_first_blocks(
    comparison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is grown says class 0 always, whatever units of the whole network would say."""
    monkeypatch.setattr(comparison, "_account", lambda *_: None)
    whole = eight_units([1.0] * 8, [[0.0] * 8, [1.0] * 8], [0.1, 0.0])  # class 1 at x > 0
    grown = eight_units([1.0] * 8, [[1.0] * 8, [0.0] * 8], [0.1, 0.0])
    x = torch.tensor([[1.0], [2.0], [3.0], [-1.0]])
    logged = outcome_of(comparison, Grown(whole, grown), x, (x[:, 0] > 0).long())
    assert logged["test/accuracy/set"] == 1
    assert logged["test/first/25/accuracy/set"] == logged["test/refit/25/accuracy/set"] == 1 / 4
    assert logged["test/norm/25/accuracy/set"] == 1


def test_rmse_rises_relatively(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight units add up to 3 of 5, an error of 2; two of them to 0.75, an error of 4.25."""
    model = eight_units([1.0] * 8, [[0.375] * 8], [0.0])
    monkeypatch.setattr(
        gbnn_module, "order_units", lambda model, name, generator: torch.arange(8).flip(0)
    )
    x = torch.ones(5, 1)
    logged = outcome_of(comparison, Given(model, cuttable=True), x, 5.0 * x)
    assert logged["test/rmse"] == pytest.approx(2)
    assert logged["test/first/25/rmse_rise"] == pytest.approx(4.25 / 2 - 1)
    assert logged["test/random/25/rmse_rise"] == pytest.approx(4.25 / 2 - 1)
    assert logged["test/first/share_to_99"] == 100  # none but all come near


class Constant(nn.Module):
    """Outputs that were made by hand."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Them."""
        return self.outputs


def test_errors_per_doubling_are_slopes(comparison: Any) -> None:
    """Errors of 10, 30 and 50 % at 2, 4 and 8 units; an rmse of 3, 2 and 1."""
    right = [torch.arange(10) < n for n in (9, 7, 5)]
    logits = [torch.stack([~hits, hits], 1).double() for hits in right]
    comparison.by_width = {"set": {2: 0, 4: 1, 8: 2}}
    x, ones = torch.zeros(10, 1), torch.ones(10, dtype=torch.long)
    rivals = Given(*map(Constant, logits), cuttable=False)
    logged = outcome_of(comparison, rivals, x, ones)
    assert logged["test/error_per_doubling"] == pytest.approx(0.2)
    outputs = [torch.full((10, 1), error, dtype=torch.float64) for error in (3.0, 2.0, 1.0)]
    logged = outcome_of(comparison, Given(*map(Constant, outputs), cuttable=False), x, x)
    assert logged["test/rmse_per_doubling"] == pytest.approx(-1)


def right(count: int) -> Tensor:
    """Logits that are right on so many of four examples of class 1."""
    hits = torch.arange(4) < count
    return torch.stack([~hits, hits], 1).double()


@pytest.mark.parametrize(
    ("said", "label", "measure", "best"),
    [
        ([right(1), right(3), right(2)], torch.ones(4, dtype=torch.long), "accuracy", 3 / 4),
        ([torch.full((4, 1), e).double() for e in (3.0, 0.5, 2.0)], torch.zeros(4, 1), "rmse", 0.5),
    ],
)
def test_the_best_try_is_right_most_often_or_nearest(
    comparison: Any, said: list[Tensor], label: Tensor, measure: str, best: float
) -> None:
    rivals, x = Given(*map(Constant, said), cuttable=False), torch.zeros(4, 1)
    rivals.size = 3
    comparison.rivals["set"], comparison.tasks = rivals, {"set": Task.of(label)}
    comparison._whole = lambda split: {"set": (x, label)}
    comparison._eligible = lambda name: [0, 1, 2]
    comparison.validation_step({"set": (x, label)}, 0)
    assert comparison.logged[f"val/{measure}"] == best
    comparison.on_test_start()
    assert comparison.choice == {"set": 1}


def test_a_network_that_grew_has_all_widths_up_to_its_own(comparison: Any) -> None:
    grown, given = Grown(nn.Identity(), nn.Identity()), Given(cuttable=False)
    assert [comparison._has_width(grown, 0, width) for width in (4, 8, 9)] == [True, True, False]
    assert [comparison._has_width(given, 0, width) for width in (4, 8, 9)] == [False, True, False]


def test_a_split_that_comes_in_parts_is_refused(comparison: Any) -> None:
    splits = {"train": (torch.zeros(5, 1),), "val": (torch.zeros(3, 1),)}
    comparison.data = SimpleNamespace(splits=splits, batch_size=5, eval_batch_size=4)
    with pytest.raises(UserError, match="eval_batch_size to 5 or more"):
        comparison._whole("val")


def test_the_lower_loss_breaks_ties_of_accuracy_at_every_width(comparison: Any) -> None:
    sure, unsure = (torch.stack([-z, z], 1).double() for z in (torch.ones(4), torch.ones(4) / 9))
    rivals = Given(Constant(unsure), Constant(sure), cuttable=False)
    rivals.size = 2
    x, y = torch.zeros(4, 1), torch.ones(4, dtype=torch.long)
    comparison.rivals["set"], comparison.tasks = rivals, {"set": Task.of(y)}
    comparison._whole = lambda split: {"set": (x, y)}
    comparison._eligible = lambda name: [0, 1]
    comparison.comparison.widths = (8,)
    comparison.on_test_start()
    assert comparison.choice == {"set": 1}
    assert comparison.by_width == {"set": {8: 1}}


def test_costs_of_a_boosted_network(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks of one unit, of which a quarter is one; weights stand for milliseconds."""
    clock = SimpleNamespace(perf_counter=itertools.count(1, 0.25).__next__)
    monkeypatch.setattr(gbnn_module, "time", clock)
    monkeypatch.setattr(gbnn_tries, "time", clock)
    assert gbnn_module._milliseconds(nn.Identity(), torch.zeros(1)) == 250
    monkeypatch.setattr(gbnn_module, "_milliseconds", lambda model, x: gbnn_module._weights(model))
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(1)
    rivals = Boosted([GradientBoosting(units=4, iterations=5)], Task(None), 1)
    for tick in range(4):
        rivals.step(x, x.square(), tick)
    assert rivals.seconds.tolist() == [0.25] * 4
    rivals.seconds = torch.ones(20, dtype=torch.float64)  # every stage takes as long
    logged = outcome_of(comparison, rivals, x, x.square())
    assert logged["test/merge_error"] < 1e-9
    assert logged["test/cost_of_a_quarter"] == 0.25
    assert logged["time/predict_quarter_ms"] / logged["time/predict_ms"] == 0.25
    assert logged["time/growth_exponent"] == pytest.approx(1)
    rivals.seconds = torch.arange(1.0, 2001).double()  # every stage takes longer than the last
    logged = outcome_of(comparison, rivals, x, x.square())
    assert logged["time/growth_exponent"] == pytest.approx(2, abs=0.01)
