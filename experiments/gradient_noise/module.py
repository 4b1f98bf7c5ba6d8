"""Trains many restarts of a network at once and reports how many of them succeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError
from repro.methods.gradient_noise import GradientNoise
from repro.toolbox.method import Batch
from repro.training.supervised import Supervised


class RestartTraining(Supervised):
    """`Supervised` for models whose output has a leading dimension of R independent networks.

    The networks share each batch; every network has its own weights, noise, clipping, loss and
    accuracy. An example counts as right when all of its symbols are. A network whose loss is no
    longer finite is never right, and does not disturb the others.

    Args:
        *args: see `Supervised`.
        success: accuracies to count networks by.
        escape_loss: cross-entropy below which a network has left its start.
        smoothing: decay per step of the smoothed training loss, in [0, 1).
        **kwargs: see `Supervised`.

    Raises:
        UserError: the model is a single network, or a method clips all networks as if they were
            one.
    """

    METRICS: ClassVar = {
        "train/steps_to_escape": "mean step at which a network's smoothed training loss first falls"
        " below escape_loss (steps plus one for a network that never gets there)",
        "val/accuracy_late": "mean over the last tenth of the epochs (iterates jitter)",
    } | {
        f"{split}/{name}": meaning
        for split in ("val", "test")
        for name, meaning in {
            "loss": "mean over networks that are finite",
            "accuracy": "mean over networks",
            "accuracy_median": "median over networks",
            "accuracy_best": "of the network that was best on the validation split",
            "share_above_*": "share of networks with at least that accuracy",
        }.items()
    }
    val_accuracy: Tensor
    late_accuracy: Tensor
    smooth_loss: Tensor
    escaped_at: Tensor

    def __init__(
        self,
        *args: Any,
        success: Sequence[float] = (0.5,),
        escape_loss: float = 1.0,
        smoothing: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        members = getattr(self.model, "members", None)
        if members is None:
            raise UserError(
                "gradient_noise trains many restarts at once: choose model=stacked_mlp,"
                " memory_network or neural_gpu. For one network of any kind:"
                " repro run paper=dgc arm=dense method=gradient_noise."
            )
        if self.clip_norm is not None and not isinstance(self.method, GradientNoise):
            raise UserError(
                "With this method all restarts would be clipped as one network: add"
                " training.clip_norm=null. For no noise, but clipped: method.schedule=none."
            )
        self.members = members
        self.success = tuple(success)
        self.escape_loss = escape_loss
        self.smoothing = smoothing
        # Buffers, so that a resumed run goes on counting.
        self.register_buffer("val_accuracy", torch.zeros(members))
        self.register_buffer("late_accuracy", torch.zeros(members, 2))  # sum, number of validations
        self.register_buffer("smooth_loss", torch.full((members,), torch.nan))
        self.register_buffer("escaped_at", torch.zeros(members))  # 0: not yet

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy (R,) of logits (R, B, C, ...) against labels (B, ...)."""
        everyone = target.expand(self.members, *target.shape)
        losses = F.cross_entropy(output.flatten(0, 1), everyone.flatten(0, 1), reduction="none")
        return losses.view(self.members, -1).mean(1)

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of the networks, with the gradient of their sum: each network's own."""
        inputs, target = batch
        output = self.model(inputs)
        losses_R = self.losses(output, target)
        self._watch(losses_R.detach())
        if isinstance(self.method, GradientNoise) and self.method.schedule == "error_scaled":
            self.method.observe_error(1 - self._right(output, target).float().mean(1))
        # One network without a finite loss would make the sum useless for all.
        total = torch.where(losses_R.isfinite(), losses_R, 0.0).sum()
        return total + (_finite_mean(losses_R) - total).detach()

    def on_train_start(self) -> None:
        """Tells the epoch once more, because a run resumed within one does not start it."""
        super().on_train_start()
        self._tell_epoch()

    def on_train_epoch_start(self) -> None:
        """Tells the epoch to models whose training has stages."""
        super().on_train_epoch_start()
        self._tell_epoch()

    def on_train_epoch_end(self) -> None:
        """Adds the steps to escape."""
        super().on_train_epoch_end()
        never = float(self.global_step + 1)
        steps = torch.where(self.escaped_at > 0, self.escaped_at, never)
        self.log("train/steps_to_escape", steps.mean())

    def _tell_epoch(self) -> None:
        tell = getattr(self.model, "start_epoch", None)
        if tell is not None:
            tell(self.current_epoch)

    def _watch(self, losses_R: Tensor) -> None:
        """Smooths the training losses and notes who has just left the start."""
        first = self.smooth_loss.isnan() & (self.global_step == 0)
        smooth = self.smoothing * self.smooth_loss + (1 - self.smoothing) * losses_R
        self.smooth_loss = torch.where(first, losses_R, smooth)
        left = (self.smooth_loss < self.escape_loss) & (self.escaped_at == 0)
        self.escaped_at = torch.where(left, float(self.global_step + 1), self.escaped_at)

    def on_validation_start(self) -> None:
        """Starts the counts anew."""
        super().on_validation_start()
        self._tell_epoch()
        self.hits_R = torch.zeros(self.members, device=self.device)
        self.loss_R = torch.zeros(self.members, device=self.device)
        self.examples = 0

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Adds to the counts of every network."""
        inputs, target = batch
        output = self.model(inputs)
        self.hits_R += self._right(output, target).sum(1)
        self.loss_R += self.losses(output, target) * len(target)
        self.examples += len(target)

    def _right(self, output: Tensor, target: Tensor) -> Tensor:
        """Which examples (R, B) have every symbol right, by finite logits."""
        shape = (self.members, len(target), -1)
        right_RB = (output.argmax(2) == target).reshape(shape).all(2)
        return right_RB & output.isfinite().reshape(shape).all(2)

    def measured(self) -> dict[str, Tensor]:
        """Statistics over the networks."""
        accuracy_R, loss_R = self.hits_R / self.examples, self.loss_R / self.examples
        if self.split == "val":
            self.val_accuracy = accuracy_R
            if self.current_epoch + 1 > 0.9 * (self.trainer.max_epochs or 0):
                self.late_accuracy += torch.stack([accuracy_R, torch.ones_like(accuracy_R)], 1)
        measured = {
            "loss": _finite_mean(loss_R),
            "accuracy": accuracy_R.mean(),
            "accuracy_median": accuracy_R.median(),
            "accuracy_best": accuracy_R[self.val_accuracy.argmax()],
            **{f"share_above_{a:g}": (accuracy_R >= a).float().mean() for a in self.success},
        }
        if self.split == "val" and bool((self.late_accuracy[:, 1] > 0).all()):
            late, count = self.late_accuracy.unbind(1)
            measured["accuracy_late"] = (late / count).mean()
        return measured


def _finite_mean(values: Tensor) -> Tensor:
    """The mean of the finite values; NaN if there is none."""
    return values[values.isfinite()].mean()
