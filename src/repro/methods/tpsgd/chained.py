"""What all rules share: a network as a chain of layers, and a learning rate for the last one.

Shapes: B examples; T time steps; C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import NonNegative, checked
from repro.models.parts.chain import Chain
from repro.models.toys.row_rnn import Recurrent
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory


class Backprop(Method):
    """Back-propagation through a chain of layers: what the local rules are compared with.

    A network that offers a `repro.models.Chain` is taken for its hidden layers (the units, and the
    stem if it has parameters) and its output layer (the head). Both have learning rates of their
    own, because rules that give hidden layers a signal of another size need another rate there.

    Args:
        hidden_lr: learning rate of the hidden layers; None: the optimizer's. 0 freezes them, which
            leaves random features and a trained output layer: the control of every local rule.
        output_loss: ``cross_entropy``, or ``bce``: sigmoid outputs and binary cross-entropy, the
            mean over all outputs, as in the authors' code of DRTP.
        trained: numbers of the hidden layers to train, from 0, negative ones from the last; None:
            all. The others keep their weights.

    Raises:
        UserError: an unknown loss, or a negative rate.
    """

    @checked
    def __init__(
        self,
        hidden_lr: NonNegative | None = None,
        output_loss: Literal["cross_entropy", "bce"] = "cross_entropy",
        trained: Sequence[int] | None = None,
    ) -> None:
        self.hidden_lr = hidden_lr
        self.output_loss = output_loss
        self.trained = trained
        self.layers: list[nn.Module] = []  # hidden, and what has no parameters between them
        self.head: nn.Module = nn.Identity()
        self.classes = 0

    def attach(self, model: nn.Module) -> None:
        """Takes the network apart, and freezes what is not to be trained.

        Raises:
            UserError: the model has no ``chain()``, no linear output layer, or no such layer.
        """
        if not hasattr(model, "chain"):
            raise UserError(
                f"Local rules cannot take {type(model).__name__} apart: it has no chain() of"
                " layers. Choose mlp, row_rnn, a CNN, a VGG or a ResNet."
            )
        chain: Chain = model.chain()  # type: ignore[operator]
        self.layers, self.head = [chain.stem, *chain.units], chain.head
        linear = [part for part in self.head.modules() if isinstance(part, nn.Linear)]
        if not linear:
            raise UserError(
                f"Local rules classify by a linear output layer; {type(model).__name__} has none."
            )
        self.classes = linear[-1].out_features
        hidden = [layer for layer in self.layers if any(True for _ in layer.parameters())]
        kept = set(range(len(hidden)))
        if self.trained is not None:
            wrong = [i for i in self.trained if not -len(hidden) <= i < len(hidden)]
            if wrong:
                raise UserError(
                    f"method.trained={wrong[0]}: there are hidden layers 0 to {len(hidden) - 1}."
                )
            kept = {i % len(hidden) for i in self.trained}
        if self.hidden_lr == 0:
            kept = set()
        for number, layer in enumerate(hidden):
            layer.requires_grad_(number in kept)

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """One optimizer with a group for the output layer and one for what else is trained."""
        output = list(self.head.parameters())
        known = {id(parameter) for parameter in output}
        hidden = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = [{"params": output}]
        if hidden:
            rate = {} if self.hidden_lr is None else {"lr": self.hidden_lr}
            groups.append({"params": hidden, **rate})
        return factory(groups)

    @override
    def register(self, ddp_model: nn.Module) -> None:
        """These rules train on one device.

        Raises:
            UserError: always.
        """
        raise UserError(
            "Local rules run a backward pass per layer, which DistributedDataParallel cannot"
            " follow: choose hardware=gpu or cpu, one device a run."
        )

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Plain back-propagation; see `Method.backward`, whose ``loss_of`` is not asked.

        Targets that are no class labels are a `UserError`.
        """
        x, labels = checked_labels(batch)
        for layer in self.layers:
            x = layer(x)
        loss = self.loss(self.head(x), labels)
        backward(loss)
        return loss.detach()

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The mean loss of the network's output."""
        if self.output_loss == "cross_entropy":
            return F.cross_entropy(logits_BC, labels_B)
        hot_BC = F.one_hot(labels_B, self.classes).to(logits_BC)
        return F.binary_cross_entropy_with_logits(logits_BC, hot_BC)


def checked_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch of inputs and class labels (B,).

    Raises:
        UserError: targets are no class labels.
    """
    x, labels = batch
    if labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            "Local rules project class labels: they need one label per example, not targets of"
            f" shape {tuple(labels.shape[1:])} and type {labels.dtype}."
        )
    return x, labels


def is_trained(layer: nn.Module) -> bool:
    """Whether any of its parameters is."""
    return any(parameter.requires_grad for parameter in layer.parameters())


def run_alone(
    layer: nn.Module, x: Tensor, times: Literal["last", "all"]
) -> tuple[Tensor, int, Iterable[Tensor]]:
    """Runs one layer, cut off from all others and, if it is recurrent, from its own past.

    Args:
        layer: a hidden layer.
        x: its input, which needs no gradient.
        times: of a recurrent layer: whether its last state is trained, or every one.

    Returns:
        The output for the next layer, without gradient; how many outputs are trained, and these one
        after the other, each with the graph of this layer alone. A state's graph holds the state
        before as a constant, so that nothing is propagated through time.
    """
    if not isinstance(layer, Recurrent):
        output = layer(x)
        return output.detach(), 1, [output]
    with torch.no_grad():
        states_BTU = layer(x)
    last = x.shape[1] - 1
    first = last if times == "last" else 0

    def steps() -> Iterable[Tensor]:
        for time in range(first, last + 1):
            before_BU = states_BTU[:, time - 1] if time else layer.start(x)
            yield layer.step(x[:, time], before_BU)

    return states_BTU, last + 1 - first, steps()
