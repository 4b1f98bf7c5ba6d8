"""Agents that learn by playing: the bridge from `advance` and `measure` to Lightning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from repro.errors import UserError


class Play(pl.LightningModule):
    """Spreads a player's updates evenly over the steps of training, and measures it in between.

    Games are known exactly or simulated: there is no data. ``val/…`` is measured after each epoch,
    ``test/…`` at the end.

    Args:
        method: a module of torch with ``updates`` (in the whole training), ``progress`` (done so
            far), ``advance(optimizer, updates)`` and ``measure()``:
            `repro.methods.bn_marl.GradientPlay` or `BayesNetPPO`.
        optimizer: called with parameters, returns an optimizer.
        unused: what other modules are given.

    Raises:
        UserError: the method does not play.
    """

    resumes_mid_epoch = True  # a step begins and ends between episodes

    def __init__(self, method: Any, optimizer: Any, **unused: Any) -> None:
        super().__init__()
        if not isinstance(method, nn.Module) or not hasattr(method, "advance"):
            raise UserError(
                "bn_marl takes method=bn_marl/tabular or method=bn_marl/ppo; "
                f"{type(method).__name__} changes updates of supervised training."
            )
        self.automatic_optimization = False
        self.player: Any = method
        self.optimizer_factory = optimizer

    def configure_optimizers(self) -> Any:
        """One optimizer for everything that learns."""
        return self.optimizer_factory(self.player.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """This step's share of all updates, so that the last step ends exactly with the last."""
        # Not `estimated_stepping_batches`: training.max_steps is to stop earlier, not to hurry.
        steps = int(self.trainer.num_training_batches) * int(self.trainer.max_epochs or 1)
        due = self.player.updates * (self.global_step + 1) // steps
        optimizer: Any = self.optimizers()
        optimizer._on_before_step()
        logged = self.player.advance(optimizer.optimizer, due - int(self.player.progress))
        optimizer._on_after_step()
        for name, value in logged.items():
            self.log(f"train/{name}", value)
        return logged

    def on_validation_epoch_end(self) -> None:
        """Logs what the player is worth now, and its progress for the figures."""
        measured = {f"val/{name}": value for name, value in self.player.measure().items()}
        self.log_dict({**measured, "train/updates": self.player.progress.float()})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: there is no data."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: there is no data."""

    def on_test_epoch_end(self) -> None:
        """Logs what the player is worth at the end."""
        self.log_dict({f"test/{name}": value for name, value in self.player.measure().items()})
