"""What the room's four modules share: whole splits, steps of an optimizer, an early end."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from repro.data.tables.suite import Suite, SuiteBatch
from repro.errors import UserError
from repro.toolbox.method import Method
from repro.toolbox.schedules import watched


class Room(pl.LightningModule):
    """A module whose whole state lies in its checkpoints.

    Args:
        method: only the plain one: there are no supervised updates that another could change.
        optimizer: called with parameters.
        schedule: called with the optimizer and the number of steps.
        clip_norm: largest global gradient norm, or None.
        stop_below: training ends when a schedule has cut the rate below this.
        seed: of all draws that are not part of training.
        unused: what other modules are given (model, task, log_every).
    """

    resumes_mid_epoch = True

    def __init__(
        self,
        method: Method,
        optimizer: Any,
        schedule: Any,
        clip_norm: float | None = None,
        stop_below: float = 0.0,
        seed: int = 0,
        **unused: Any,
    ) -> None:
        super().__init__()
        if type(method) is not Method:
            raise UserError(
                "nngp_mixture infers or trains Gaussian processes and ensembles by itself; it"
                f" cannot use method {type(method).__name__}: say method=none."
            )
        self.automatic_optimization = False
        self.optimizer_factory, self.schedule = optimizer, schedule
        self.clip_norm, self.stop_below, self.seed = clip_norm, stop_below, seed
        self.clock = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def configure_optimizers(self) -> Any:
        """The optimizer of what can be trained; of nothing, to count steps, where that is empty."""
        parameters = [each for each in self.parameters() if each.requires_grad]
        optimizer = self.optimizer_factory(parameters or [self.clock])
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def descend(self, loss: Tensor) -> None:
        """One update by the gradient of a loss."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        self.tick()

    def tick(self) -> None:
        """Moves the optimizer and a schedule that counts steps."""
        optimizer: Any = self.optimizers()
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        if watched(scheduler) is None:
            scheduler.step()

    def watch(self, measured: dict[str, float]) -> None:
        """Logs validation measures, and lets a schedule that watches one see it."""
        self.log_dict({f"val/{name}": value for name, value in measured.items()}, batch_size=1)
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        scheduler: Any = self.lr_schedulers()
        name = watched(scheduler)
        if name is None:
            return
        if name not in measured:
            raise UserError(
                f"schedule.watch={name}, but validation measures {', '.join(measured)}."
            )
        scheduler.step(measured[name])
        if scheduler.optimizer.param_groups[0]["lr"] < self.stop_below:
            self.trainer.should_stop = True

    def whole(self, split: str) -> SuiteBatch:
        """All examples of a split, by data set, as float64 where they are numbers."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        sets = data.whole(split) if isinstance(data, Suite) else {data.name: data.splits[split]}
        return {
            name: tuple(self._wide(tensor) for tensor in tensors) for name, tensors in sets.items()
        }

    def target_stds(self) -> dict[str, float]:
        """By data set: what an error is multiplied by to be in the target's unit."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        sets = data.sets if isinstance(data, Suite) else {data.name: data}
        return {
            name: 1.0 if each.target_std is None else float(each.target_std[0])
            for name, each in sets.items()
        }

    def _wide(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        return tensor.double() if tensor.is_floating_point() else tensor


def start(what: Any, **shared: Any) -> Room:
    """Builds the module that an arm names with what all modules are given."""
    room: Room = what(**shared)
    return room
