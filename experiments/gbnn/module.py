"""Boosting against joint training on every table of a suite, with units switched off at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from repro.experiments.gbnn.tries import Boosted, Rivals, Task, boosted_rivals, joint_rivals
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.tables.suite import Suite, SuiteBatch
from repro.errors import UserError, did_you_mean
from repro.methods.gbnn import (
    GradientBoosting,
    keep_units,
    order_units,
    penultimate_features,
    refit_output,
)
from repro.toolbox.method import Method
from repro.training.procedure import Procedure, model_weights

TIMED_ROWS, TIMED_PASSES = 20_000, 15


@dataclass
class Protocol:
    """How the procedures are compared; the keys of ``module.comparison`` in the paper's config.

    Attributes:
        grids: settings to try, by name; the try with the best validation score is tested.
        grid: which of the grids.
        same_size: joint training: only tries as wide as the model says may be chosen; others serve
            the curve over widths.
        alpha: weight decay of joint training.
        batch: examples of a joint mini-batch; None for all.
        shares: per cent of the units that are left on.
        random_orders: over which random-k is averaged.
        refit_alpha: weight decay of refit-k.
        widths: also test the best try of each of these widths.
        backbone: a model whose penultimate features are boosted; its weights come from the arm
            that this one starts from.
        seed: of random orders, weights and mini-batches.
    """

    grids: Mapping[str, Sequence[Mapping[str, Any]]]
    grid: str
    same_size: bool = True
    alpha: float = 1e-4
    batch: int | None = None
    shares: Sequence[float] = (5, 12.5, 25, 50, 75)
    random_orders: int = 10
    refit_alpha: float = 1e-2
    widths: Sequence[int] = ()
    backbone: nn.Module | None = None
    seed: int = 0

    @property
    def tries(self) -> Sequence[Mapping[str, Any]]:
        """The tries of the chosen grid.

        Raises:
            UserError: there is no such grid.
        """
        if self.grid not in self.grids:
            raise UserError(
                f"gbnn: there is no grid '{self.grid}'; known: {', '.join(self.grids)}."
                f"{did_you_mean(self.grid, self.grids)}"
            )
        return self.grids[self.grid]


@dataclass
class Table:
    """Numbers by metric and data set; a metric's value is the mean over the sets that have it."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, metric: str, dataset: str, value: float) -> None:
        """Notes one number."""
        self.values.setdefault(metric, {})[dataset] = value

    def means(self) -> dict[str, float]:
        """The metrics, and what each set contributed to them, with ``/<data set>`` behind."""
        means = {name: statistics.fmean(sets.values()) for name, sets in self.values.items()}
        single = {
            f"{name}/{dataset}": value
            for name, sets in self.values.items()
            for dataset, value in sets.items()
            if not name.endswith(("_drop", "_rise"))
        }
        return means | single


class Comparison(Procedure):
    """Trains every try on every data set, chooses by validation, then switches units off.

    One training step is one stage of boosting, or one epoch of joint training, on each data set.
    Data come as `repro.data.tables.suite.Suite`, or as a single data set in one batch.

    Args:
        model: called with input_shape and classes, builds a network for joint training.
        method: `GradientBoosting`, or the plain `Method` for joint training.
        optimizer: of joint training.
        comparison: how to compare.

    Raises:
        UserError: a share is none, or the method changes updates.
    """

    # Of accuracy and rmse, a data set has one. Besides the mean over the sets of its kind, each is
    # logged for every set, with /<data set> behind.
    METRICS: ClassVar = {"train/loss": "mean training loss over data sets"} | {
        f"{name}{of_a_set}": meaning
        for of_a_set in ("", "/*")
        for name, meaning in {
            "val/accuracy": "share of right examples of the best try",
            "val/rmse": "error of the best try, in standard deviations",
            "test/accuracy": "share of right examples of the chosen try",
            "test/rmse": "its error, in standard deviations",
            "test/chosen_try": "its number in the grid",
            "test/first/*": "accuracy or rmse with so many per cent of the units, the first; "
            "accuracy_drop or rmse_rise against all; share_to_99, per cent that reach 99 %",
            "test/random/*": "likewise with random units",
            "test/norm/*": "likewise with those of the largest norm",
            "test/refit/*": "likewise with the output layer fitted anew",
            "test/width/*": "accuracy or rmse of the best try of a width",
            "test/error_per_doubling": "slope of the error over log2 of the width",
            "test/rmse_per_doubling": "likewise of the rmse",
            "test/merge_error": "largest difference between the merged network and its blocks",
            "test/cost_of_a_quarter": "weights of the first quarter of the units, over all",
            "time/predict_ms": "milliseconds for a prediction",
            "time/predict_quarter_ms": "likewise with a quarter of the units",
            "time/growth_exponent": "of the time to train t stages, over t",
        }.items()
    }

    def __init__(
        self,
        model: Any,
        method: Method,
        optimizer: Any,
        comparison: Protocol,
    ) -> None:
        super().__init__()
        for share in comparison.shares:
            if not 0 < share < 100:
                raise UserError(f"gbnn: shares lie between 0 and 100 per cent, not {share}.")
        if not isinstance(method, GradientBoosting) and type(method) is not Method:
            raise UserError(
                "gbnn's tables are for networks that it builds itself, by boosting (method=gbnn) or"
                " jointly (method=none): methods that change the updates of a given model work with"
                " arm=cnn."
            )
        self.build, self.method, self.joint_optimizer = model, method, optimizer
        self.comparison = comparison
        self.backbone = comparison.backbone
        self.rivals = nn.ModuleDict()
        self.tasks: dict[str, Task] = {}
        self.known: dict[int, tuple[Tensor, Tensor]] = {}  # features of what was seen before

    @override
    def setup(self, stage: str) -> None:
        """Builds the rivals of each data set, from its sizes."""
        if len(self.rivals):
            return
        for name, (x, y) in self._whole("train").items():
            task = self.tasks[name] = Task.of(y)
            inputs, protocol = x[0].numel(), self.comparison
            self.rivals[name] = (
                boosted_rivals(self.method, protocol.tries, task, inputs)
                if isinstance(self.method, GradientBoosting)
                else joint_rivals(
                    self.build, self.joint_optimizer, protocol.tries, task, inputs,
                    protocol.alpha, protocol.batch, protocol.seed,
                )
            )  # fmt: skip

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes the backbone's weights over from an arm that trained it with `Supervised`.

        Raises:
            UserError: this arm has no backbone.
        """
        if self.backbone is None:
            raise UserError("gbnn: an arm that starts from another one names its backbone.")
        self.backbone.load_state_dict(model_weights(checkpoint))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One stage, or one epoch, on each data set."""
        losses = [
            rivals.step(x, y, self.global_step)
            for (_, rivals), (x, y) in zip(self._items(), self._sets(batch).values(), strict=True)
        ]
        self.tick()
        loss = torch.stack([each.double() for each in losses]).mean()
        self.log("train/loss", loss)
        if all(rivals.done for _, rivals in self._items()):
            self.trainer.should_stop = True
        return {"loss": loss}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the best try's validation score, on average over the sets of each kind."""
        table = Table()
        for name, (x, y) in self._sets(batch).items():
            task, scores = self.tasks[name], self._scores(name, x, y)
            best = max(task.sign * scores[i] for i in self._eligible(name))
            table.add(f"val/{task.measure}", name, task.sign * best)
        self.log_dict(table.means(), batch_size=1)

    @torch.no_grad()
    def on_test_start(self) -> None:
        """Chooses, for each data set, the try with the best validation score."""
        self.choice: dict[str, int] = {}
        self.by_width: dict[str, dict[int, int]] = {}
        for name, (x, y) in self._whole("val").items():
            rivals = self._rivals(name)
            self.choice[name] = self._best(name, self._eligible(name), x, y)
            self.by_width[name] = {}
            for width in self.comparison.widths:
                able = [i for i in range(rivals.size) if self._has_width(rivals, i, width)]
                if able:
                    self.by_width[name][width] = self._best(name, able, x, y, width)

    def _best(
        self, name: str, able: list[int], x: Tensor, y: Tensor, units: int | None = None
    ) -> int:
        """The try with the best score. Small sets know few of them; the lower loss breaks ties."""
        task = self.tasks[name]

        def rank(index: int) -> tuple[float, float]:
            outputs = self._rivals(name).network(index, units)(x.double())
            return task.sign * task.score(outputs, y), -float(task.loss(outputs, y))

        return max(able, key=rank)

    @override
    @torch.inference_mode(False)  # refit-k trains, which tensors of that mode cannot
    @torch.no_grad()
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs test scores: whole, truncated, and by width; and what predictions cost."""
        table = Table()
        train = self._whole("train")
        for name, (x, y) in self._sets(batch).items():
            rivals, task, chosen = self._rivals(name), self.tasks[name], self.choice[name]
            full = rivals.network(chosen)
            score = self._score(name, full, x, y)
            table.add(f"test/{task.measure}", name, score)
            table.add("test/chosen_try", name, chosen)
            if rivals.cuttable:
                self._truncate(table, name, score, x, y, *train[name])
            errors = {}
            for width, index in self.by_width[name].items():
                reached = self._score(name, rivals.network(index, width), x, y)
                table.add(f"test/width/{width}/{task.measure}", name, reached)
                errors[width] = 1 - reached if task.sign > 0 else reached
            if len(errors) > 1:
                slope = np.polyfit(np.log2(list(errors)), list(errors.values()), 1)[0]
                kind = "error" if task.sign > 0 else "rmse"
                table.add(f"test/{kind}_per_doubling", name, float(slope))
            if isinstance(rivals, Boosted):
                self._account(table, name, rivals, chosen, x)
        self.log_dict(table.means(), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the optimizers of joint training."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["optimizers_of_tries"] = {
            name: rivals.optimizer_states() for name, rivals in self._items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        for name, rivals in self._items():
            rivals.load_optimizer_states(checkpoint["optimizers_of_tries"][name])

    def _truncate(
        self,
        table: Table,
        name: str,
        score: float,
        x: Tensor,
        y: Tensor,
        x_tr: Tensor,
        y_tr: Tensor,
    ) -> None:
        """Test scores of the chosen try with a share of its units, in every order."""
        rivals, task, protocol = self._rivals(name), self.tasks[name], self.comparison
        model, units = rivals.network(self.choice[name]), rivals.units(self.choice[name])
        boosted = isinstance(rivals, Boosted)
        curve: dict[str, list[float]] = {"first": [], "random": [], "norm": [], "refit": []}
        for share in protocol.shares:
            k = max(1, round(share / 100 * units))
            random = []
            for number in range(protocol.random_orders):
                # The same orders at every share, so that each is a curve.
                order = order_units(model, "random", generator_for(protocol.seed, number))
                random.append(self._score(name, keep_units(model, order[:k]), x, y))
            norm = keep_units(model, order_units(model, "norm", torch.Generator())[:k])
            first = keep_units(model, torch.arange(k))
            if boosted:  # the blocks take their parts of the output bias with them
                first = rivals.network(self.choice[name], k)
            refit = refit_output(
                first if boosted else norm,
                x_tr.double(),
                lambda outputs: task.loss(outputs, y_tr),
                protocol.refit_alpha,
            )
            scores = {
                "first": self._score(name, first, x, y),
                "random": statistics.fmean(random),
                "norm": self._score(name, norm, x, y),
                "refit": self._score(name, refit, x, y),
            }
            for order_name, value in scores.items():
                key = f"test/{order_name}/{share:g}"
                table.add(f"{key}/{task.measure}", name, value)
                # How much worse than whole: accuracy lost, or the error's relative growth.
                worse = score - value if task.sign > 0 else value / score - 1
                table.add(f"{key}/{_loss_name(task)}", name, worse)
                curve[order_name].append(value)
        for order_name, values in curve.items():
            needed = [
                share
                for share, value in zip((*protocol.shares, 100), (*values, score), strict=True)
                if (value >= 0.99 * score if task.sign > 0 else value <= score / 0.99)
            ]
            table.add(f"test/{order_name}/share_to_99", name, needed[0])

    def _account(self, table: Table, name: str, rivals: Boosted, chosen: int, x: Tensor) -> None:
        """Merge identity, cost of a prediction with a quarter of the units, time of training."""
        network: Any = rivals.boosters[chosen].network
        whole, units = rivals.network(chosen), rivals.units(chosen)
        quarter = rivals.network(chosen, units // 4)
        error = (whole(x.double()) - network.output_scale * network(x)).abs().max()
        table.add("test/merge_error", name, float(error))
        table.add("test/cost_of_a_quarter", name, _weights(quarter) / _weights(whole))
        rows = x.double().repeat(1 + TIMED_ROWS // len(x), *[1] * (x.dim() - 1))
        table.add("time/predict_ms", name, _milliseconds(whole, rows))
        table.add("time/predict_quarter_ms", name, _milliseconds(quarter, rows))
        seconds = rivals.seconds[rivals.seconds > 0].cpu().numpy()
        if len(seconds) >= 10:
            # Its first tenth warms up; a straight line in log-log has the growth as its slope.
            stages = np.arange(1, len(seconds) + 1)
            late = stages > len(seconds) // 10
            slope = np.polyfit(np.log(stages[late]), np.log(np.cumsum(seconds)[late]), 1)[0]
            table.add("time/growth_exponent", name, float(slope))

    def _score(self, name: str, model: nn.Module, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return self.tasks[name].score(model(x.double()), y)

    def _scores(self, name: str, x: Tensor, y: Tensor) -> list[float]:
        rivals = self._rivals(name)
        return [self._score(name, rivals.network(i), x, y) for i in range(rivals.size)]

    def _eligible(self, name: str) -> list[int]:
        """The tries of which one is chosen.

        Raises:
            UserError: none is of the size that is asked for.
        """
        rivals, wanted = self._rivals(name), None
        if self.comparison.same_size and not isinstance(rivals, Boosted):
            wanted = self.build.keywords["hidden"][0]
        able = [i for i in range(rivals.size) if wanted in (None, rivals.units(i))]
        if not able:
            raise UserError(
                f"gbnn: no try has {wanted} units (model.hidden): add that width to "
                f"module.comparison.grids.{self.comparison.grid}, or set "
                "module.comparison.same_size=false."
            )
        return able

    def _has_width(self, rivals: Rivals, index: int, width: int) -> bool:
        """A greedily grown network contains those of every smaller budget."""
        units = rivals.units(index)
        return units >= width if isinstance(rivals, Boosted) else units == width

    def _rivals(self, name: str) -> Rivals:
        rivals = self.rivals[name]
        assert isinstance(rivals, Rivals)
        return rivals

    def _items(self) -> Iterator[tuple[str, Rivals]]:
        for name in self.rivals:
            yield name, self._rivals(name)

    def _whole(self, split: str) -> SuiteBatch:
        """A whole split of every data set, on this module's device.

        Raises:
            UserError: a single data set comes in several batches.
        """
        data = self.data
        if isinstance(data, Suite):
            sets = data.whole(split)
        else:
            largest = max(len(part[0]) for part in data.splits.values())
            if min(data.batch_size, data.eval_batch_size) < largest:
                raise UserError(
                    "gbnn looks at a whole data set at once: set dataset.batch_size and "
                    f"dataset.eval_batch_size to {largest} or more."
                )
            # Through the loader, which normalises what is stored as bytes.
            sets = {data.name: next(getattr(data, f"{split}_dataloader")().batches(0))}
        return self._sets(
            {name: tuple(part.to(self.device) for part in each) for name, each in sets.items()}
        )

    def _sets(self, batch: Any) -> SuiteBatch:
        """A batch by data sets, features instead of inputs where there is a backbone."""
        if not isinstance(batch, dict):
            batch = {self.data.name: batch}
        if self.backbone is None:
            return batch
        return {name: (self._features(x), y) for name, (x, y) in batch.items()}

    def _features(self, x: Tensor) -> Tensor:
        """Penultimate features; the last inputs of each size are remembered."""
        assert self.backbone is not None
        seen, features = self.known.get(len(x), (None, None))
        if seen is None or features is None or not torch.equal(seen, x):
            features = penultimate_features(self.backbone, x)
            self.known[len(x)] = (x, features)
        return features


def _loss_name(task: Task) -> str:
    return "accuracy_drop" if task.sign > 0 else "rmse_rise"


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


def _milliseconds(model: nn.Module, x: Tensor) -> float:
    """Median time of a prediction."""
    times = []
    with torch.no_grad():
        for _ in range(TIMED_PASSES):
            started = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
