"""Target-projection SGD: every layer learns to meet a random projection of the label.

Shapes: B examples; C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import Count, Known, Positive, checked
from repro.methods.tpsgd.chained import Backprop, checked_labels, is_trained, run_alone
from repro.methods.tpsgd.projections import LOCAL_LOSSES, Kind, Projections, positions
from repro.models.toys.row_rnn import Recurrent
from repro.toolbox.method import Batch, LossOf, OptimizerFactory


class TargetProjection(Backprop):
    """Trains each layer by ``loss(P_i y*, y_i)`` during the forward pass, and by nothing else.

    With z_i = W_i y_{i-1} + b_i, y_i = sigma(z_i), a one-hot label y* and a fixed random P_i::

        l2:    dW_i = -[(P_i y* - y_i) * sigma'(z_i)] y_{i-1}^T
        l1:    dW_i = -[sign(P_i y* - y_i) * sigma'(z_i)] y_{i-1}^T
        drtp:  dW_i = -[P_i y* * sigma'(z_i)] y_{i-1}^T

    are gradients, averaged over the batch. y_{i-1} is a constant: a layer's graph is freed before
    the next layer begins, so that what is kept does not grow with depth. The output layer learns
    from the label itself. ``drtp`` is direct random target projection with the matrices -P_i; where
    no target can be passed (tanh and targets of -1 and 1), ``l1`` is the same, step for step.

    Args:
        loss: one of `LOCAL_LOSSES`.
        kind: of the targets, see `Projections`.
        scale: of the targets.
        spread: of a convolution's targets, likewise.
        seed: of the targets.
        times: of a recurrent layer: whether its ``last`` state is to meet the target, or ``all``.
            States before are constants either way.
        targets: ``random``; ``shuffled``: of a random class for each example (a control);
            ``class_means``: what `fit_targets` found.
        update: ``together``: all layers at the end of the step, by the optimizer. ``at_once``: each
            layer right after its own backward pass, which frees its gradients; layers behind it
            see what it gave before the update, so that plain SGD takes the same steps.
            ``recompute``: at once, and the next layer sees what the updated one gives. The latter
            two pass gradient clipping by.
        greedy_epochs: train one hidden layer after the other, each for so many epochs, then the
            output layer; None: all of them all the time.
        position_mean: whether a convolution's loss is divided by its pixels, which keeps learning
            rates comparable between layers.
        knobs: see `Backprop`.

    Raises:
        UserError: a knob is out of range. `attach` raises it for what depends on the model.
    """

    @checked
    def __init__(
        self,
        loss: Annotated[str, Known(tuple(LOCAL_LOSSES))] = "l2",
        kind: Kind = "rademacher",
        scale: Positive = 1.0,
        spread: Literal["full", "channel"] = "full",
        seed: int = 0,
        times: Literal["last", "all"] = "last",
        targets: Literal["random", "shuffled", "class_means"] = "random",
        update: Literal["together", "at_once", "recompute"] = "together",
        greedy_epochs: Count | None = None,
        position_mean: bool = True,
        **knobs: Any,
    ) -> None:
        super().__init__(**knobs)
        self.local_loss = LOCAL_LOSSES[loss]
        self.projections = Projections(kind, scale, spread, seed)
        self.times: Literal["last", "all"] = times
        self.targets = targets
        self.update = update
        self.greedy_epochs = greedy_epochs
        self.position_mean = position_mean
        self.shuffler = generator_for(seed)
        self.means: dict[int, Tensor] = {}  # of `class_means`: like a `Projections`
        self.epoch = 0
        self.stepper: Optimizer | None = None

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """See `Backprop.optimizer`; kept, for updates at once."""
        self.stepper = super().optimizer(model, factory)
        return self.stepper

    def start_epoch(self, epoch: int) -> None:
        """Notes the epoch, which decides what a greedy schedule trains."""
        self.epoch = epoch

    @property
    def lacks_targets(self) -> bool:
        """Whether `fit_targets` has to be called before training."""
        return self.targets == "class_means" and not self.means

    @torch.no_grad()
    def fit_targets(self, x: Tensor, labels_B: Tensor) -> None:
        """Makes the class means of every layer's outputs, as the network now is, its targets.

        Args:
            x: inputs of all examples.
            labels_B: their classes; each has to occur.
        """
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if is_trained(layer):
                final = x[:, -1] if isinstance(layer, Recurrent) else x
                parts = [final[labels_B == c].mean(0) for c in range(self.classes)]
                self.means[number] = torch.stack(parts)

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """One forward pass, in which each layer has its own backward pass.

        See `Method.backward` for the arguments. The returned loss is that of the network's output.

        Raises:
            UserError: targets are no class labels, or ``class_means`` are not there.
        """
        x, labels = checked_labels(batch)
        if self.lacks_targets:
            raise UserError("method.targets=class_means needs fit_targets(x, labels) first.")
        meant = labels
        if self.targets == "shuffled":
            drawn = torch.randint(self.classes, labels.shape, generator=self.shuffler)
            meant = drawn.to(labels.device)
        hidden = [number for number, layer in enumerate(self.layers) if is_trained(layer)]
        due, learns_output = self._due(hidden)
        for number, layer in enumerate(self.layers):
            if number not in due:
                with torch.no_grad():
                    x = layer(x)
                continue
            given = x
            x, count, outputs = run_alone(layer, given, self.times)
            for output in outputs:
                backward(self.loss_at(number, output, meant) / count)
            if self.update != "together":
                self._step()
            if self.update == "recompute":
                with torch.no_grad():
                    x = layer(given)
        with torch.set_grad_enabled(learns_output):
            loss = self.loss(self.head(x), labels)
        if learns_output:
            backward(loss)
        return loss.detach()

    def loss_at(self, number: int, output: Tensor, labels_B: Tensor) -> Tensor:
        """The mean local loss of a layer.

        Args:
            number: of the layer in the chain.
            output: (B, ...) of the layer.
            labels_B: the classes whose targets it is to meet.
        """
        table = self.means.get(number)
        if table is None:
            table = self.projections.of(number, self.classes, output)
        loss = self.local_loss(table[labels_B], output).mean()
        return loss / positions(output) if self.position_mean else loss

    def _due(self, hidden: list[int]) -> tuple[list[int], bool]:
        """The hidden layers that this epoch trains, and whether it trains the output layer."""
        if self.greedy_epochs is None:
            return hidden, True
        phase = self.epoch // self.greedy_epochs
        return hidden[phase : phase + 1], phase >= len(hidden)

    def _step(self) -> None:
        assert self.stepper is not None, "optimizer() comes before the first step"
        self.stepper.step()
        self.stepper.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Class means, and where the shuffling stands; random targets come from the seed."""
        return {"means": self.means, "shuffler": self.shuffler.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.means = state["means"]
        self.shuffler.set_state(state["shuffler"].cpu())
