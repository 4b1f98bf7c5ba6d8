"""Networks for a suite of data sets, and each of them pruned once by few references."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from repro.experiments.lrp_pruning.base import (
    draw_classes,
    draw_examples,
    measure,
    refuse_others,
    seeded,
)
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import Batch, generator_for
from repro.data.base.modules import TensorData
from repro.data.tables.planar import Planar
from repro.data.tables.suite import Suite
from repro.errors import UserError
from repro.knobs import Count, checked
from repro.methods.lrp_pruning import (
    FilterPruning,
    Scores,
    overlap,
    scoring_cost,
    silence,
    without_lowest,
)
from repro.toolbox.method import Method, OptimizerFactory
from repro.training.procedure import Procedure, refuse_methods


class Networks(Procedure):
    """A network for each set of a suite, of the set's own sizes; what trains or prunes them.

    Args:
        model: called with ``input_shape``, ``classes`` and ``hidden``, builds a network.
        hidden: widths by set, where they are other than the model's own.
        seed: of everything random.
    """

    KEPT: ClassVar = ("found",)
    data: Suite

    def __init__(
        self,
        model: Callable[..., nn.Module],
        hidden: Mapping[str, Sequence[int]],
        optimizer: OptimizerFactory,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.build, self.hidden, self.seed = model, hidden, seed
        self.net_optimizer = optimizer
        self.nets = nn.ModuleDict()
        self.taken_over: dict[str, Tensor] | None = None
        self.found: dict[str, float] = {}

    @override
    def setup(self, stage: str) -> None:
        """Builds the networks, with the weights of the arm that this one starts from."""
        if len(self.nets):
            return
        for number, (name, data) in enumerate(self.data.sets.items()):
            with seeded(self.seed, 0, number):
                sizes = {"input_shape": data.input_shape, "classes": data.classes}
                widths = {"hidden": self.hidden[name]} if name in self.hidden else {}
                self.nets[name] = self.build(**sizes, **widths)
        if self.taken_over is not None:
            self.load_state_dict(self.taken_over)

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the networks, as soon as they are built."""
        self.taken_over = checkpoint["state_dict"]

    def parts(self) -> Sequence[str]:
        """What there is to do, in its order."""
        raise NotImplementedError

    def work(self, part: str) -> Mapping[str, float]:
        """Does a part, and returns what it found."""
        raise NotImplementedError

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One part; the data are taken from the suite, where they are needed."""
        parts = self.parts()
        self.found = {**self.found, **self.work(parts[self.global_step])}
        self.tick()
        if self.global_step == len(parts):
            self.trainer.should_stop = True
        return {"loss": torch.zeros(())}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to validate."""

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """There is nothing to test but what was found."""

    def on_test_epoch_end(self) -> None:
        """Logs what was found."""
        self.log_dict(self.found)


class Trained(Networks):
    """Trains the networks, one a step.

    Args:
        epochs: of each, in the batches of its set.
        method: must be the plain one.
        optimizer: of each.
        networks: see `Networks`.
    """

    METRICS: ClassVar = {"val/*/accuracy": "share of right validation examples of a set's network"}

    @checked
    def __init__(
        self, epochs: Count, method: Method, optimizer: OptimizerFactory, **networks: Any
    ) -> None:
        super().__init__(optimizer=optimizer, **networks)
        if not isinstance(method, FilterPruning):  # which is for the arms that start from here
            refuse_methods(method, "lrp_pruning trains plainly; it cannot use {method}.")
        self.epochs = epochs

    @override
    def parts(self) -> Sequence[str]:
        """The sets."""
        return list(self.nets)

    @override
    def work(self, part: str) -> Mapping[str, float]:
        """Trains a network."""
        data, net = self.data.sets[part], self.nets[part].train()
        optimizer: Any = self.net_optimizer(net.parameters())
        batches = data.train_dataloader()
        with seeded(self.seed, 1, self.parts().index(part)), torch.enable_grad():
            for _ in range(self.epochs):
                for x, y in batches:
                    optimizer.zero_grad()
                    F.cross_entropy(net(x.to(self.device)), y.to(self.device)).backward()
                    optimizer.step()
        optimizer.zero_grad()
        assert data.classes is not None
        found = measure(net, [data.splits["val"][:2]], torch.arange(data.classes), self.device)
        return {f"val/{part}/accuracy": found[0]}


@dataclass
class Task:
    """What is pruned, by how many references, and how often.

    Attributes:
        data: whose network.
        sizes: n, references of each class, rising.
        rates: shares of the units that are removed, each of them by the usual number of references.
        rate: the one of them that is removed for all numbers of references.
        usual: one of the sizes.
        draws: of the references, and of ``classes``.
        classes: drawn classes, all that references and evaluation know of; None: all.
        noise: standard deviations of what is added to fresh points.
    """

    data: str
    sizes: Sequence[int]
    rates: Sequence[float]
    rate: float
    usual: int
    draws: int
    classes: int | None = None
    noise: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.usual not in self.sizes or self.rate not in self.rates:
            raise UserError(
                f"lrp_pruning: in the tasks on {self.data}, usual is one of sizes and rate one of"
                f" rates, not {self.usual} and {self.rate}."
            )


class OneShot(Networks):
    """Prunes the networks once, at several rates, for several numbers and draws of references.

    Of the planar sets references are fresh points, and accuracy is that on the training points, as
    in the paper; of others they are training examples, and accuracy is that on the test split. All
    arms of a seed share networks, references and drawn classes.

    Args:
        method: how to prune.
        tasks: by name, see `Task`.
        against: other ways to score, whose ranks are compared with the method's.
        judged: ``test``, as above, or ``val``, for tuning: the validation split.
        networks: see `Networks`.

    Raises:
        UserError: the method does not prune, or a task is about a set that is not there.
    """

    METRICS: ClassVar = {  # by split and task; means over draws
        f"*/{name}": meaning
        for name, meaning in {
            "*/unpruned_accuracy": "share of right examples before pruning",
            "*/accuracy_n*": "after pruning by n references of each class, at the task's rate",
            "*/accuracy_r*": "after pruning so many per cent, by the usual number of references",
            "*/gain": "accuracy by the most references above that by the usual number",
            "*/noisy_accuracy_s*_n*": "on fresh points with noise of s hundredths",
            "*/overlap_share_n*": "of the removed units, between draws, at the lowest rate",
            "*/pruned_share_layer*": "of a layer's units, at the task's rate",
            "*/zero_share": "of units whose score is exactly 0, by the usual number of references",
            "*/guarded": "units that stay because they are a layer's last, at the highest rate",
            "*/rank_self": "Spearman correlation of scores between draws, most references",
            "*/rank_with_*": "likewise with the scores of another criterion, same references",
            "*/passes": "multiply-adds of scoring, over those of a forward and backward pass",
        }.items()
    }

    def __init__(
        self,
        method: FilterPruning,
        tasks: Mapping[str, Mapping[str, Any]],
        against: Mapping[str, FilterPruning] | None = None,
        judged: Literal["val", "test"] = "test",
        **networks: Any,
    ) -> None:
        super().__init__(**networks)
        refuse_others(method)
        self.method, self.judged, self.against = method, judged, dict(against or {})
        self.tasks = {name: Task(**task) for name, task in tasks.items()}

    @override
    def setup(self, stage: str) -> None:
        """See `Networks`.

        Raises:
            UserError: there is no such set.
        """
        super().setup(stage)
        for name, task in self.tasks.items():
            if task.data not in self.nets:
                raise UserError(
                    f"lrp_pruning: tasks.{name}.data={task.data}, but the sets are"
                    f" {', '.join(self.nets)}."
                )

    @override
    def parts(self) -> Sequence[str]:
        """The tasks."""
        return list(self.tasks)

    @override
    def work(self, part: str) -> Mapping[str, float]:
        """Prunes and measures."""
        task, found = self.tasks[part], defaultdict[str, list[float]](list)
        net, data = self.nets[task.data].eval(), self.data.sets[task.data]
        self.method.begin(net)
        explained, pruned = self.method.explained(net), copy.deepcopy(net)
        for n in task.sizes:
            drawn = [self._references(part, n, draw) for draw in range(task.draws)]
            scored = []
            for draw, (references, classes) in enumerate(drawn):
                with seeded(*self._key(part, n, draw), 1):
                    scored.append(self.method.scores_of(explained, [references]))
                self._prune(pruned, part, n, scored[-1], classes, found)
            lowest = [self._without(scores, min(task.rates))[0] for scores in scored]
            found[f"overlap_share_n{n}"] = [overlap(a, b) for a, b in combinations(lowest, 2)]
            if n == task.usual:
                zero = [torch.cat(list(scores.values())) == 0 for scores in scored]
                found["zero_share"] = [float(each.float().mean()) for each in zero]
                found["passes"] = [scoring_cost(self.method, net, [drawn[0][0]])]
                whole = [self._examples(data)]
                found["unpruned_accuracy"] = [
                    measure(net, whole, classes, self.device)[0] for _, classes in drawn
                ]
        most = [references for references, _ in drawn]  # of each class
        self._compare_ranks(net, scored, most, found)
        means = {name: statistics.fmean(values) for name, values in found.items() if values}
        means["gain"] = means[f"accuracy_n{task.sizes[-1]}"] - means[f"accuracy_n{task.usual}"]
        return {f"{self.judged}/{part}/{name}": value for name, value in means.items()}

    def _key(self, part: str, n: int, draw: int) -> tuple[int, ...]:
        return self.seed, 2, self.parts().index(part), n, draw

    def _without(self, scores: Scores, rate: float) -> tuple[dict[str, Tensor], int]:
        count = round(rate * self.method.total)
        return without_lowest(scores, self.method.kept, count, self.method.least)

    def _references(self, part: str, n: int, draw: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """A draw of references (x, y), and the classes that it is about."""
        task, generator = self.tasks[part], generator_for(*self._key(part, n, draw))
        data = self.data.sets[task.data]
        assert data.classes is not None
        classes = draw_classes(data.classes, task.classes, generator)
        if isinstance(data, Planar):
            x, y = data.draw(n, generator)
        else:
            chosen = draw_examples(data.labels("train"), classes, n, generator)
            x, y = data.take("train", chosen)
        return (x.to(self.device), y.to(self.device)), classes

    def _prune(
        self,
        pruned: nn.Module,
        part: str,
        n: int,
        scores: Scores,
        classes: Tensor,
        found: dict[str, list[float]],
    ) -> None:
        """Prunes a copy at each of the rates that are due, and measures it."""
        task = self.tasks[part]
        net, data = self.nets[task.data], self.data.sets[task.data]
        for rate in task.rates if n == task.usual else [task.rate]:
            kept, guarded = self._without(scores, rate)
            pruned.load_state_dict(net.state_dict())
            silence(pruned, self.method.units, kept)
            accuracy, _ = measure(pruned, [self._examples(data)], classes, self.device)
            if n == task.usual:
                found[f"accuracy_r{round(100 * rate)}"].append(accuracy)
            if n == task.usual and rate == max(task.rates):
                found["guarded"].append(guarded)
            if rate == task.rate:
                found[f"accuracy_n{n}"].append(accuracy)
                self._measure_noisy(task, n, pruned, classes, found)
            if n == task.usual and rate == task.rate:
                for number, mask in enumerate(kept.values(), 1):
                    share = 1 - float(mask.float().mean())
                    found[f"pruned_share_layer{number}"].append(share)

    def _examples(self, data: TensorData) -> Batch:
        """What accuracy is that of."""
        if self.judged == "val":
            return data.splits["val"]
        return data.splits["train" if isinstance(data, Planar) else "test"]

    def _measure_noisy(
        self, task: Task, n: int, pruned: nn.Module, classes: Tensor, found: dict[str, list[float]]
    ) -> None:
        x, y = self.data.sets[task.data].splits[self.judged]
        for number, s in enumerate(task.noise):
            noise = s * torch.randn(x.shape, generator=generator_for(self.seed, 4, number))
            accuracy, _ = measure(pruned, [(x + noise, y)], classes, self.device)
            found[f"noisy_accuracy_s{round(100 * s)}_n{n}"].append(accuracy)

    def _compare_ranks(
        self,
        net: nn.Module,
        scored: Sequence[Scores],
        references: Sequence[tuple[Tensor, Tensor]],
        found: dict[str, list[float]],
    ) -> None:
        """Rank correlations between draws, and with other criteria on the same draw."""
        own = [torch.cat(list(scores.values())).cpu() for scores in scored]
        found["rank_self"] = [float(spearmanr(a, b)[0]) for a, b in combinations(own, 2)]
        for name, other in self.against.items():
            other.begin(net)
            explained = other.explained(net)
            for draw, ours in enumerate(own):
                with seeded(self.seed, 3, draw):
                    scores = other.scores_of(explained, [references[draw]])
                theirs = torch.cat(list(scores.values())).cpu()
                found[f"rank_with_{name}"].append(float(spearmanr(ours, theirs)[0]))
