"""Trains what precodes or shares powers, without labels, and measures it against iterations."""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from repro.data.worlds.wireless import Wireless
from repro.errors import UserError
from repro.methods.icgnn import (
    CellFree,
    Downlink,
    FixedSizePrecoder,
    ascend_power,
    permutation_error,
    wmmse,
    wmmse_path,
)
from repro.toolbox.costs import count_operations
from repro.toolbox.timing import median_seconds
from repro.training.supervised import Supervised

Decision = Tensor  # a precoder (B, M, S), or powers (B, L, K)
TIMED_PASSES = 5
COUNTED = 4  # channels whose operations are counted: each costs the same
POSITIVE = ("test/savings", "test/se", "test/multiplications")  # have geometric means


class Transmission(Supervised):
    """Maximises the users' mean spectral efficiency over channels that are drawn as it goes.

    The reference, against which all is measured, is WMMSE in a cell and gradient ascent on every
    network where there are no cells.

    Args:
        *args: see `Supervised`.
        reference: ``iterations`` and ``start`` of WMMSE, ``steps`` and ``lr`` of the ascent.
        cg_steps: numbers of conjugate-gradient steps to test with.
        timed: sizes at which time is measured, by the kind of data.
        **kwargs: see `Supervised`.
    """

    # Each is logged by size (/<size>) and as the mean over sizes seen and unseen in training;
    # errors and solves as the largest, times as the geometric mean.
    METRICS: ClassVar = {"val/se": "geometric mean over sizes, bit/s/Hz"} | {
        f"{name}{of_sizes}": meaning
        for name, meaning in {
            "test/se": "sum of the users' spectral efficiencies, bit/s/Hz",
            "test/min_se": "that of the worst user, bit/s/Hz",
            "test/relative_se": "test/se as part of the reference's",
            "test/relative_se_at": "likewise with so many conjugate-gradient steps",
            "test/power_error": "part by which a power constraint is missed or exceeded",
            "test/permutation_error": "relative change when nodes are shuffled, in float64",
            "test/solves": "matrix factorisations for one channel",
            "test/multiplications": "for one channel",
            "test/iterations_to_match": "after how many WMMSE has the same spectral efficiency",
            "test/savings": "multiplications of the reference over the own",
            "test/savings_equal_se": "likewise, of iterations_to_match iterations",
            "time/speedup": "time of the reference over the own, at the timed sizes",
            "time/speedup_equal_se": "likewise, of iterations_to_match iterations",
        }.items()
        for of_sizes in ("", "/*")
    }
    data: Wireless

    def __init__(
        self,
        *args: Any,
        reference: dict[str, Any],
        cg_steps: Sequence[int] = (),
        timed: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reference, self.cg_steps, self.timed = reference, cg_steps, dict(timed or {})
        self.is_learned = any(True for _ in self.model.parameters())
        self.table: dict[str, dict[str, float]] = defaultdict(dict)  # by metric and size

    @override
    def setup(self, stage: str) -> None:
        """Checks that model and data belong together.

        Raises:
            UserError: the run has other data, a model for the other problem, or unknown sizes.
        """
        if not isinstance(self.data, Wireless):
            raise UserError("icgnn simulates its channels: dataset=wireless.")
        if getattr(self.model, "problem", None) is not self.data.problem:
            raise UserError(
                f"model {type(self.model).__name__} does not fit dataset.kind={self.data.name}: "
                "icgnn fits both; *_precoder is for cellular, *_power for cellfree."
            )
        known = [cell.name for cell in self.data.test_cells]
        for name in self.timed.get(str(self.data.name), ()):
            if name not in known:
                raise UserError(
                    f"module.timed.{self.data.name} names {name}, which is not tested; "
                    f"known: {', '.join(known)}."
                )

    def loss(self, batch: Any) -> Tensor:
        """Minus the mean spectral efficiency of a user."""
        return -batch.rates(self.model(batch)).mean()

    def configure_optimizers(self) -> Any:
        """Nothing, where nothing is learned."""
        return super().configure_optimizers() if self.is_learned else None

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One update, or a look at what cannot be updated."""
        if self.is_learned:
            return super().training_step(batch, batch_idx)
        return {"loss": torch.zeros((), device=self.device)}

    def on_validation_start(self) -> None:
        """Starts an empty table."""
        super().on_validation_start()
        self.table = defaultdict(dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Notes the spectral efficiency at one size."""
        if self._fits(batch):
            name = self.data.val_cells[batch_idx].name
            self.table["val/se"][name] = _sum_rate(batch, self.model(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the geometric mean over sizes."""
        self.log("val/se", _geometric(self.table["val/se"].values()))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measures everything at one size."""
        if not self._fits(batch):
            return
        cell = self.data.test_cells[batch_idx].name
        decision = self.model(batch)
        se = _sum_rate(batch, decision)
        best, matched = self._compare(batch, se)
        few = type(batch)(*(part[:COUNTED] for part in batch))
        cost = count_operations(self.model, few)
        # What optimises by iterations amplifies rounding; it is no network, and not judged by this.
        shuffled = permutation_error(self.model, few) if self.is_learned else 0.0
        found: dict[str, float] = {
            "test/se": se,
            "test/min_se": float(batch.rates(decision).amin(-1).mean()),
            "test/relative_se": se / best,
            "test/power_error": float(batch.power_error(decision)),
            "test/permutation_error": shuffled,
            "test/solves": sum(cost.solves.values()),
            "test/multiplications": cost.multiplications / len(few[0]),
        }
        rivals = {"": self._iterations(batch)}
        if self.data.problem is Downlink:
            rivals["_equal_se"] = found["test/iterations_to_match"] = matched
            for steps in self.cg_steps if hasattr(self.model, "cg_steps") else ():
                model: Any = copy.copy(self.model)
                model.cg_steps = steps
                found[f"test/relative_se_at/{steps}"] = _sum_rate(batch, model(batch)) / best
        # An iteration costs what the one before did: two counts tell the cost of any number.
        first, second = (
            count_operations(self._run_reference, few, n).multiplications for n in (1, 2)
        )
        for name, count in rivals.items():
            counted = first + (count - 1) * (second - first)
            found[f"test/savings{name}"] = counted / max(1, cost.multiplications)
        if cell in self.timed.get(str(self.data.name), ()):
            runs: dict[str, Callable[[], Any]] = {"own": functools.partial(self.model, batch)}
            for name, count in rivals.items():
                runs[name] = functools.partial(self._run_reference, batch, count)
            seconds = median_seconds(runs, TIMED_PASSES)
            for name in rivals:
                found[f"time/speedup{name}"] = seconds[name] / seconds["own"]
        for metric, value in found.items():
            self.table[metric][cell] = value

    def on_test_epoch_end(self) -> None:
        """Logs every number by size, and means over the sizes seen and unseen in training."""
        kinds = {cell.name: "seen" if cell.seen else "unseen" for cell in self.data.test_cells}
        logged: dict[str, float] = {}
        for metric, values in self.table.items():
            logged |= {f"{metric}/{cell}": value for cell, value in values.items()}
            if metric.endswith(("error", "solves")):
                logged[metric] = max(values.values())
            elif metric.startswith("time/"):
                logged[metric] = _geometric(values.values())
            else:
                mean = _geometric if metric.startswith(POSITIVE) else statistics.fmean
                for kind in dict.fromkeys(kinds[cell] for cell in values):
                    of_kind = [value for cell, value in values.items() if kinds[cell] == kind]
                    logged[f"{metric}/{kind}"] = mean(of_kind)
        self.log_dict(logged)

    def _fits(self, batch: Any) -> bool:
        return not isinstance(self.model, FixedSizePrecoder) or self.model.fits(batch)

    def _iterations(self, batch: Any) -> int:
        """Iterations of the whole reference."""
        return int(self.reference["iterations" if isinstance(batch, Downlink) else "steps"])

    def _run_reference(self, batch: Any, iterations: int) -> Decision:
        """The reference's decision after so many iterations."""
        if isinstance(batch, CellFree):
            return ascend_power(batch, "sum", iterations, self.reference["lr"])
        return wmmse(batch.known, batch.snr, iterations, start=self.reference["start"])

    def _compare(self, batch: Any, se: float) -> tuple[float, int]:
        """The reference's spectral efficiency, and how many iterations (or all) reach ``se``."""
        count = self._iterations(batch)
        if isinstance(batch, CellFree):
            return _sum_rate(batch, self._run_reference(batch, count)), count
        path = wmmse_path(batch.known, batch.snr, start=self.reference["start"])
        reached = [_sum_rate(batch, W) for W in itertools.islice(path, count)]
        matched = (i for i, value in enumerate(reached, start=1) if value >= se)
        return reached[-1], next(matched, count)


def _sum_rate(batch: Any, decision: Decision) -> float:
    return float(batch.rates(decision).sum(-1).mean())


def _geometric(values: Iterable[float]) -> float:
    return statistics.geometric_mean(max(value, 1e-12) for value in values)
