"""Agents that learn by playing: the bridge from `advance` and `measure` to Lightning."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.toolbox.method import OptimizerFactory
from repro.training.lightning import counted_step
from repro.training.procedure import Procedure


class Play(Procedure):
    """Spreads a player's updates evenly over the steps of training, and measures it in between.

    Games are known exactly or simulated: there is no data. ``val/…`` is measured after each epoch,
    ``test/…`` at the end.

    Args:
        method: a module of torch with ``updates`` (in the whole training), ``progress`` (done so
            far), ``advance(optimizer, updates)`` and ``measure()``:
            `repro.methods.bn_marl.GradientPlay` or `BayesNetPPO`.
        optimizer: called with parameters, returns an optimizer.

    Raises:
        UserError: the method does not play.
    """

    METRICS: ClassVar = {
        "train/*": "what the player's last update measured",
        "train/updates": "updates so far",
    } | {  # n<agents>: one game
        f"{split}/{name}": meaning
        for split in ("val", "test")
        for name, meaning in {
            "poa": "value of the joint policy over the optimum, mean over games",
            "poa_n*": "likewise",
            "poa_median_n*": "likewise, median over starts",
            "poa_rise_n*": "poa_n* minus that in the middle of training",
            "above_n*": "share of starts that reach the optimum",
            "gap_n*": "median over starts of the Nash gap",
            "gap_share_n*": "gap_n* over that at the start",
            "poa_greedy": "value of the most likely actions over the optimum",
            "above": "share of replicas whose poa_greedy reaches 0.99",
            "open_ratio": "density of the graphs",
            "return": "mean return of an episode of greedy heads",
        }.items()
    }

    def __init__(self, method: Any, optimizer: OptimizerFactory) -> None:
        super().__init__(optimizer)
        if not isinstance(method, nn.Module) or not hasattr(method, "advance"):
            raise UserError(
                "bn_marl takes method=bn_marl/tabular or method=bn_marl/ppo; "
                f"{type(method).__name__} changes updates of supervised training."
            )
        self.player: Any = method

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """This step's share of all updates, so that the last step ends exactly with the last."""
        # Not `estimated_stepping_batches`: training.max_steps is to stop earlier, not to hurry.
        steps = int(self.trainer.num_training_batches) * int(self.trainer.max_epochs or 1)
        due = self.player.updates * (self.global_step + 1) // steps
        with counted_step(self.optimizers()) as optimizer:
            logged = self.player.advance(optimizer, due - int(self.player.progress))
        for name, value in logged.items():
            self.log(f"train/{name}", value)
        return logged

    def on_validation_epoch_end(self) -> None:
        """Logs what the player is worth now, and its progress for the figures."""
        measured = {f"val/{name}": value for name, value in self.player.measure().items()}
        self.log_dict({**measured, "train/updates": self.player.progress.float()})

    def on_test_epoch_end(self) -> None:
        """Logs what the player is worth at the end."""
        self.log_dict({f"test/{name}": value for name, value in self.player.measure().items()})
