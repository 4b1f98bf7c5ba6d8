"""What the room's four modules share: whole splits, steps of an optimizer, an early end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from repro.data.tables.suite import Suite, SuiteBatch
from repro.toolbox.method import Method, OptimizerFactory
from repro.training.procedure import Number, Procedure, ScheduleFactory, refuse_methods


class Room(Procedure):
    """A procedure on whole splits, which may end early.

    Args:
        method: only the plain one: there are no supervised updates that another could change.
        optimizer: called with parameters.
        schedule: called with the optimizer and the number of steps.
        clip_norm: largest global gradient norm, or None.
        stop_below: training ends when a schedule has cut the rate below this.
        seed: of all draws that are not part of training.
    """

    METRICS: ClassVar = {"train/loss": "the loss of the latest step", "val/nll": "nats per example"}

    def __init__(
        self,
        method: Method,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        clip_norm: float | None = None,
        stop_below: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule, clip_norm)
        refuse_methods(
            method,
            "nngp_mixture infers or trains Gaussian processes and ensembles by itself; it cannot"
            " use method {method}: say method=none.",
        )
        self.stop_below, self.seed = stop_below, seed

    def watch(self, measured: Mapping[str, Number]) -> bool:
        """Logs validation measures, and ends training when a schedule says so."""
        self.log_dict({f"val/{name}": value for name, value in measured.items()}, batch_size=1)
        moved = super().watch(measured)
        scheduler: Any = self.lr_schedulers()
        if moved and scheduler.optimizer.param_groups[0]["lr"] < self.stop_below:
            self.trainer.should_stop = True
        return moved

    def whole(self, split: str) -> SuiteBatch:
        """All examples of a split, by data set, as float64 where they are numbers."""
        data = self.data
        sets = data.whole(split) if isinstance(data, Suite) else {data.name: data.splits[split]}
        return {
            name: tuple(self._wide(tensor) for tensor in tensors) for name, tensors in sets.items()
        }

    def target_stds(self) -> dict[str, float]:
        """By data set: what an error is multiplied by to be in the target's unit."""
        data = self.data
        sets = data.sets if isinstance(data, Suite) else {data.name: data}
        return {
            name: 1.0 if each.target_std is None else float(each.target_std[0])
            for name, each in sets.items()
        }

    def _wide(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        return tensor.double() if tensor.is_floating_point() else tensor
