"""Trains what precodes or shares powers, without labels, and measures it against iterations."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    wmmse,
    wmmse_path,
)
from repro.toolbox.costs import count_operations
from repro.training.supervised import Supervised

Decision = Tensor  # a precoder (B, M, S), or powers (B, L, K)
TIMED_PASSES = 5
COUNTED = 4  # channels whose operations are counted: each costs the same


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
    METRICS: ClassVar = {
        "val/se": "geometric mean over sizes of val/se/*",
        "val/se/*": "bit/s/Hz",
    } | {
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
            "test/points_per_user": "access points that serve a user",
            "test/savings": "multiplications of the reference over the own",
            "test/savings_equal_se": "likewise, of iterations_to_match iterations",
            "time/ms": "milliseconds for a batch at the timed sizes",
            "time/speedup": "time of the reference over the own",
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
        self.table: dict[str, dict[str, float]] = {}

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
        self.table = {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Notes the spectral efficiency at one size."""
        if self._fits(batch):
            name = self.data.val_cells[batch_idx].name
            self._note("val/se", name, _sum_rate(batch, self.model(batch)))

    def on_validation_epoch_end(self) -> None:
        """Logs the geometric mean over sizes."""
        measured = {f"val/se/{cell}": value for cell, value in self.table["val/se"].items()}
        self.log_dict({**measured, "val/se": _geometric(self.table["val/se"].values())})

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measures everything at one size."""
        cell = self.data.test_cells[batch_idx].name
        if not self._fits(batch):
            return
        decision = self.model(batch)
        se = _sum_rate(batch, decision)
        self._note("test/se", cell, se)
        self._note("test/min_se", cell, float(batch.rates(decision).amin(-1).mean()))
        best, matched = self._compare(batch, se)
        self._note("test/relative_se", cell, se / best)
        self._note("test/power_error", cell, _power_error(batch, decision))
        self._note("test/permutation_error", cell, self._permutation_error(batch))

        few = type(batch)(*(part[:COUNTED] for part in batch))
        cost = count_operations(self.model, few)
        self._note("test/solves", cell, sum(cost.solves.values()))
        self._note("test/multiplications", cell, cost.multiplications / len(few[0]))
        rivals = {"": self._iterations(batch)}
        if self.data.problem is Downlink:
            self._note("test/iterations_to_match", cell, matched)
            rivals["_equal_se"] = matched
            for steps in self.cg_steps if hasattr(self.model, "cg_steps") else ():
                model: Any = copy.copy(self.model)
                model.cg_steps = steps
                part = _sum_rate(batch, model(batch)) / best
                self._note(f"test/relative_se_at/{steps}", cell, part)
        else:
            self._note("test/points_per_user", cell, float(batch.mask.float().sum(1).mean()))
        # An iteration costs what the one before did: two counts tell the cost of any number.
        first, second = (
            count_operations(self._run_reference, few, n).multiplications for n in (1, 2)
        )
        for name, count in rivals.items():
            counted = first + (count - 1) * (second - first)
            self._note(f"test/savings{name}", cell, counted / max(1, cost.multiplications))
        if cell in self.timed.get(str(self.data.name), ()):
            runs: dict[str, Callable[[Any], Any]] = {"own": self.model}
            for name, count in rivals.items():
                runs[name] = functools.partial(self._run_reference, iterations=count)
            seconds = _seconds(runs, batch)
            self._note("time/ms", cell, 1e3 * seconds["own"])
            for name in rivals:
                self._note(f"time/speedup{name}", cell, seconds[name] / seconds["own"])

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
                for kind in ("seen", "unseen"):
                    of_kind = [value for cell, value in values.items() if kinds[cell] == kind]
                    if of_kind:
                        logged[f"{metric}/{kind}"] = _mean(metric, of_kind)
        self.log_dict(logged)

    def _note(self, metric: str, cell: str, value: float) -> None:
        self.table.setdefault(metric, {})[cell] = value

    def _fits(self, batch: Any) -> bool:
        return not isinstance(self.model, FixedSizePrecoder) or self.model.fits(batch)

    def _iterations(self, batch: Any) -> int:
        """Iterations of the whole reference."""
        kind = "iterations" if isinstance(batch, Downlink) else "steps"
        count: int = self.reference[kind]
        return count

    def _run_reference(self, batch: Any, iterations: int) -> Decision:
        """The reference's decision after so many iterations."""
        if isinstance(batch, CellFree):
            return ascend_power(batch, "sum", iterations, self.reference["lr"])
        return wmmse(batch.known, batch.snr, iterations, start=self.reference["start"])

    def _compare(self, batch: Any, se: float) -> tuple[float, int]:
        """The reference's spectral efficiency, and the iterations after which it reaches ``se``.

        Those are all where it never does.
        """
        count = self._iterations(batch)
        if isinstance(batch, CellFree):
            return _sum_rate(batch, self._run_reference(batch, count)), count
        path = wmmse_path(batch.known, batch.snr, start=self.reference["start"])
        reached = [_sum_rate(batch, W) for W in itertools.islice(path, count)]
        matched = (i for i, value in enumerate(reached, start=1) if value >= se)
        return reached[-1], next(matched, count)

    def _permutation_error(self, batch: Any) -> float:
        """Largest change of the decision, relative to its largest entry, when nodes are shuffled.

        In double precision, so that a difference in kind is told from rounding. What optimises by
        iterations amplifies rounding; it is no network, and not judged by this.
        """
        if not self.is_learned:
            return 0.0
        model = copy.deepcopy(self.model).double()
        generator = torch.Generator().manual_seed(0)
        few = _double(type(batch)(*(part[:COUNTED] for part in batch)))
        # Users and antennas in a cell; access points and users without cells.
        sizes = few[0].shape[1], few[0].shape[-1]
        rows, columns = (torch.randperm(n, generator=generator) for n in sizes)
        if isinstance(few, Downlink):
            N = few.H.shape[2]
            H, known = (each[:, rows][..., columns] for each in (few.H, few.known))
            moved: Any = Downlink(H, few.snr, known)
            straight = model(few).unflatten(-1, (-1, N))[:, columns][:, :, rows].flatten(-2)
        else:
            beta, mask = (each[:, rows][..., columns] for each in (few.beta, few.mask))
            antennas, limit = few.antennas[:, rows], few.limit[:, rows]
            moved = CellFree(beta, mask, antennas, limit, few.pilot_energy, few.pilots[:, columns])
            straight = model(few)[:, rows][..., columns]
        return float((model(moved) - straight).abs().max() / straight.abs().max())


def _sum_rate(batch: Any, decision: Decision) -> float:
    return float(batch.rates(decision).sum(-1).mean())


def _power_error(batch: Any, decision: Decision) -> float:
    """By which part of it the power constraint is missed (cell) or exceeded (access points)."""
    if isinstance(batch, Downlink):
        return float((decision.abs().square().sum((-2, -1)) - 1).abs().max())
    return float((decision.sum(-1) / batch.limit - 1).clamp(min=0).max())


def _double(batch: Any) -> Any:
    kinds = {torch.complex64: torch.complex128, torch.float32: torch.float64}
    return type(batch)(*(part.to(kinds.get(part.dtype, part.dtype)) for part in batch))


def _seconds(competitors: dict[str, Callable[[Any], Any]], batch: Any) -> dict[str, float]:
    """Median times of things that take turns, so that a busy machine is busy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for turn in range(TIMED_PASSES + 1):
        for name, run in competitors.items():
            started = time.perf_counter()
            run(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def _mean(metric: str, values: Sequence[float]) -> float:
    """Of ratios and rates the geometric mean; of what may be zero the ordinary one."""
    if metric.startswith(("test/savings", "test/se", "test/multiplications")):
        return _geometric(values)
    return statistics.fmean(values)


def _geometric(values: Any) -> float:
    return math.exp(statistics.fmean(math.log(max(value, 1e-12)) for value in values))
