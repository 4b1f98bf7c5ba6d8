"""What training modules share, whether they descend gradients or prune, boost, infer or play.

A `Procedure` is a LightningModule that optimises by hand, so that logging, checkpoints, devices and
resuming come for free. An `Evaluated` one is also measured on batches of validation and test data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from repro.errors import UserError, did_you_mean
from repro.toolbox.method import Method, OptimizerFactory
from repro.toolbox.schedules import watched
from repro.training.lightning import step_plainly

ScheduleFactory = Callable[..., LRScheduler]
Number = float | Tensor


class RunningLoss:
    """The mean of the losses so far, summed where they are: no step waits for a number."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, loss: Tensor) -> None:
        """Adds a step's detached loss."""
        self.total = self.total + loss
        self.count += 1

    def take(self) -> Tensor | float:
        """Returns the mean and starts anew."""
        mean = self.total / max(1, self.count)
        self.total, self.count = 0.0, 0
        return mean

    def state(self) -> tuple[Tensor | float, int]:
        """What a checkpoint keeps."""
        return self.total, self.count

    def restore(self, state: tuple[Tensor | float, int]) -> None:
        """Takes over a `state`."""
        self.total, self.count = state


class Means:
    """Weighted means by name, summed where the values are; what is not a number counts nothing.

    Examples:
        >>> means = Means()
        >>> means.add("loss", torch.tensor(1.0), 3)
        >>> means.add("loss", torch.tensor(5.0), 1)
        >>> means.take()
        {'loss': tensor(2.)}
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, values: Tensor, weight: float = 1) -> None:
        """Adds values of any shape, each of the same weight."""
        values = values.to(torch.get_default_dtype())
        weights = torch.full_like(values, weight).masked_fill(values.isnan(), 0)
        total, count = self.sums.get(name, (torch.zeros_like(weights.sum()),) * 2)
        self.sums[name] = (
            total + (values.nan_to_num(0, torch.inf, -torch.inf) * weights).sum(),
            count + weights.sum(),
        )

    def take(self, reduce: Callable[[Tensor], Tensor] = lambda total: total) -> dict[str, Tensor]:
        """The means; ``reduce`` sums a tensor over all processes."""
        return {name: reduce(total) / reduce(n) for name, (total, n) in self.sums.items()}


class Procedure(pl.LightningModule):
    """A training module whose whole state is in its checkpoints, at any step.

    Attributes:
        METRICS: what the class logs besides its parents, by name, with unit and meaning; ``*``
            stands for what a name is built with (``test/loss_*``). See `repro.training.metrics`.
        KEPT: attributes, besides those of parents, that a checkpoint keeps: tensors, numbers,
            strings, and lists, tuples and dictionaries of them.
        data: the run's data, which is set before training.

    Args:
        optimizer: called with parameters, returns an optimizer; None: nothing is descended.
        schedule: called with the optimizer and the number of steps, returns a scheduler; None: the
            rate is constant.
        clip_norm: largest global gradient norm, or None.
        log_every: steps between rows of the training loss.

    Raises:
        UserError: ``clip_norm`` is not positive.
    """

    METRICS: ClassVar[Mapping[str, str]] = {}
    KEPT: ClassVar[Sequence[str]] = ()
    resumes_mid_epoch = True
    data: Any = None

    def __init__(
        self,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        clip_norm: float | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        if clip_norm is not None and clip_norm <= 0:
            raise UserError(f"training.clip_norm is a positive number or null, not {clip_norm}.")
        self.automatic_optimization = False
        self.optimizer_factory, self.schedule = optimizer, schedule
        self.clip_norm, self.log_every = clip_norm, log_every
        self.running_loss = RunningLoss()

    # -- Steps ------------------------------------------------------------------------------------

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets."""
        return [each for each in self.parameters() if each.requires_grad]

    def configure_optimizers(self) -> Any:
        """The optimizer; one of nothing, for Lightning to count steps, where nothing is trained."""
        nothing = [nn.Parameter(torch.zeros(()))]
        if self.optimizer_factory is None:
            return torch.optim.SGD(nothing, lr=0.0)
        return self.scheduled(self.optimizer_factory(self.trained() or nothing))

    def scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer with its schedule over all steps of this training."""
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def on_train_start(self) -> None:
        """Refuses a precision that needs Lightning's own step.

        Raises:
            UserError: the loss would be scaled.
        """
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "hardware.precision=16-mixed scales the loss, and clipping and methods would see "
                "the scale: use bf16-mixed."
            )

    def descend(self, loss: Tensor, before_step: Callable[[], object] = lambda: None) -> None:
        """One update by the gradient of a loss, which ``before_step`` may change."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        before_step()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained(), self.clip_norm)
        self.tick()

    def tick(self) -> None:
        """Moves the optimizer, and a schedule that counts steps: a step is over."""
        step_plainly(self.optimizers())
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None and watched(scheduler) is None:
            scheduler.step()

    def watch(self, measured: Mapping[str, Number]) -> bool:
        """Lets a schedule that watches a measure see those of a validation.

        Returns:
            Whether a schedule did.

        Raises:
            UserError: it watches what is not measured.
        """
        # Not `trainer.training`: that is false while a fit validates.
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return False
        scheduler: Any = self.lr_schedulers()
        name = watched(scheduler)
        if name is None:
            return False
        if name not in measured:
            raise UserError(
                f"schedule.watch={name}, but validation measures {', '.join(measured)}."
                + did_you_mean(name, measured)
            )
        scheduler.step(float(measured[name]))
        return True

    # -- Measuring: Lightning leaves out a phase that a module has no step of ---------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: what is not measured by batches is logged in `on_validation_epoch_end`."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: what is not measured by batches is logged in `on_test_epoch_end`."""

    # -- State ------------------------------------------------------------------------------------

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what the arm that this one starts from ended with: here everything."""
        self.load_state_dict(checkpoint["state_dict"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is `KEPT`, and the epoch's loss so far."""
        checkpoint["kept"] = {name: getattr(self, name) for name in self._kept_names()}
        checkpoint["loss_so_far"] = self.running_loss.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        for name in self._kept_names():
            setattr(self, name, checkpoint["kept"][name])
        self.running_loss.restore(checkpoint["loss_so_far"])

    def _kept_names(self) -> list[str]:
        return [name for kind in type(self).__mro__ for name in vars(kind).get("KEPT", ())]

    # -- Logging ----------------------------------------------------------------------------------

    def note_loss(self, loss: Tensor) -> None:
        """Adds the detached loss of the step just made to the epoch's mean, `running_loss`."""
        self.running_loss.add(loss)
        if self.global_step % self.log_every == 0:
            self.log_now({"train/step_loss": float(loss)})

    def log_now(self, values: dict[str, float]) -> None:
        """Writes a row of metrics.csv at this step, rather than at the end of the epoch."""
        for logger in self.loggers:
            # Lightning numbers an epoch's row by its last step, and steps from zero.
            logger.log_metrics(values, step=self.global_step - 1)


class Evaluated(Procedure):
    """A procedure that is measured on the batches of validation and test data.

    `evaluate` notes the measures of a batch; their weighted means are logged as ``val/<name>`` and
    ``test/<name>``, and a schedule may watch those of ``val``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.means = Means()
        self.split = "val"  # or test: which of them is being measured

    def evaluate(self, batch: Any, batch_idx: int) -> None:
        """Notes the measures of a batch."""
        raise NotImplementedError

    def note(self, measures: Mapping[str, Number], weight: float = 1) -> None:
        """Adds measures to the evaluation under way."""
        for name, value in measures.items():
            self.means.add(name, torch.as_tensor(value, device=self.device), weight)

    def measured(self) -> dict[str, Tensor]:
        """The means over the split so far, over all processes."""
        if self.trainer.world_size == 1:
            return self.means.take()
        reduce = self.trainer.strategy.reduce  # in place
        return self.means.take(lambda total: reduce(total.clone(), reduce_op="sum"))

    def log_measured(self) -> Mapping[str, Number]:
        """Logs what was measured, and returns it."""
        measured = self.measured()
        self.log_dict({f"{self.split}/{name}": value for name, value in measured.items()})
        return measured

    def on_validation_start(self) -> None:
        """Starts from empty means."""
        self.means, self.split = Means(), "val"

    def on_test_start(self) -> None:
        """Starts from empty means."""
        self.on_validation_start()
        self.split = "test"

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measures a batch."""
        self.evaluate(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measures a batch."""
        self.evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation measures, and lets a schedule that watches one see it."""
        self.watch(self.log_measured())

    def on_test_epoch_end(self) -> None:
        """Logs the test measures."""
        self.log_measured()


def model_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the ``model`` that another arm trained, by their names within it."""
    prefix = "model."
    return {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }


def refuse_methods(method: object, reason: str) -> None:
    """Refuses a method where there are no supervised updates that one could change.

    Args:
        method: what the config names; only the plain one passes.
        reason: the error message, with ``{method}`` where its name goes.

    Raises:
        UserError: it is not the plain one.
    """
    if type(method) is not Method:
        raise UserError(reason.format(method=type(method).__name__))
