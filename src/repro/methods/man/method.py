"""Supervised local learning: blocks trained by losses of their own, with momentum copies or not.

Shapes: B examples; N units; K' blocks, numbered from 1 in comments and from 0 in code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Positive, Probability, checked
from repro.methods.man.blocks import block_ends, loss_weight
from repro.methods.man.follow import EmaOf, Init, copy_of, update_all
from repro.methods.man.heads import (
    Classification,
    Decoder,
    InfoPro,
    PredSim,
    auxiliary_head,
    unit_range,
)
from repro.models.parts.chain import Chain
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory


class Bridge(nn.Module):
    """What stands between a block and its loss: ``y = bias(x) + ema(x)``, or either, or ``y = x``.

    Args:
        ema: the momentum copy of the next unit, or None.
        bias: the learnable copy of the next unit, or None.
    """

    def __init__(self, ema: EmaOf | None, bias: nn.Module | None) -> None:
        super().__init__()
        self.ema = ema
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps a block's output to what its loss sees."""
        if self.ema is None:
            return x if self.bias is None else self.bias(x)
        return self.ema(x) if self.bias is None else self.bias(x) + self.ema(x)


class LocalLoss(nn.Module):
    """The bridge and the loss of one block."""

    def __init__(self, bridge: Bridge, criterion: nn.Module) -> None:
        super().__init__()
        self.bridge = bridge
        self.criterion = criterion

    def forward(self, x: Tensor, image: Tensor, target: Tensor) -> Tensor:
        """The loss of a block's output (B, C, ...) for images and labels (B,)."""
        loss: Tensor = self.criterion(self.bridge(x), image, target)
        return loss


class LocalLearning(Method):
    """Trains a network block by block (DGL, InfoPro, PredSim), with MAN's bridge between blocks.

    The network is cut into K' blocks E_i; every border stops the gradient. Block i < K' is trained
    by ``loss_i(LB_i(x_i) + EMA_i(x_i))``, where both have the architecture of the *first unit of
    block i + 1*: EMA_i follows that unit's parameters (``m EMA + (1 - m) unit`` after every
    backward pass, before the optimizer's step), LB_i is trained. The last block is trained by the
    cross-entropy of the network's own head. Each block's backward pass runs at once, so that its
    activations are freed before the next block begins. The network itself is not changed:
    evaluation, checkpoints and inference see it without bridges and auxiliary nets.

    Args:
        input_shape: of one example; tells the shapes at the borders. None if the data have none.
        classes: number of classes, or None likewise; `attach` then says what is missing.
        modules: the paper's K, see `block_ends`; None makes every unit a block, 1 is end to end.
        borders: the last unit of every block but the last; replaces ``modules``.
        loss: ``dgl`` (cross-entropy of an auxiliary classifier), ``infopro`` (plus painting the
            image) or ``predsim`` (prediction and similarity matching).
        ema: whether the bridge has the momentum copy.
        bias: whether the bridge has the learnable copy.
        momentum: m in [0, 1]; 0.995 in the paper.
        init: of both copies, see `copy_of`.
        head: auxiliary classifier of ``dgl`` and ``infopro``, see `auxiliary_head`.
        features: width of its hidden linear layers.
        widen: factor on its channels.
        decoder: of ``infopro``: ``cifar`` or ``imagenet``.
        weight_x: lambda_x of ``infopro`` at the first and at the last auxiliary block. Both weights
            default to those that InfoPro's authors publish for K = 16; with K = 2 only the first
            of a pair is read, and theirs are 5 and 0.5.
        weight_y: lambda_y, likewise.
        weight_schedule: see `loss_weight`.
        beta: of ``predsim``, see `PredSim`.
        normalise: ``mean`` and ``std`` per channel that inputs were normalised with, on the scale
            0 to 1, so that ``infopro`` can paint pixels in [0, 1]; None: see `unit_range`.

    Raises:
        UserError: an unknown loss or decoder. `attach` raises it for everything that depends on
            the model.
    """

    METRICS: ClassVar = {
        "local/blocks": "number of blocks",
        "local/auxiliary_parameters": "parameters that only training needs",
    }

    @checked
    def __init__(
        self,
        input_shape: Sequence[int] | None,
        classes: int | None,
        modules: int | None = None,
        borders: Sequence[int] | None = None,
        loss: Literal["dgl", "infopro", "predsim"] = "dgl",
        ema: bool = True,
        bias: bool = True,
        momentum: Probability = 0.995,
        init: Init = "independent",
        head: str = "2c2f",
        features: Count = 128,
        widen: Positive = 1.0,
        decoder: Literal["cifar", "imagenet"] = "cifar",
        weight_x: Sequence[float] = (5.0, 0.5),
        weight_y: Sequence[float] = (0.0, 1.0),
        weight_schedule: Literal["linear", "official_quirk"] = "linear",
        beta: Probability = 0.99,
        normalise: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        for name, pair in {"weight_x": weight_x, "weight_y": weight_y}.items():
            if len(pair) != 2:
                raise UserError(f"method.{name} is [first block, last block], not {list(pair)}.")
        self.input_shape = tuple(input_shape or ())
        self.classes = classes or 0
        self.modules = modules
        self.borders = borders
        self.loss = loss
        self.ema = ema
        self.bias = bias
        self.momentum = momentum
        self.init = init
        self.head = head
        self.features = features
        self.widen = widen
        self.decoder = decoder
        self.weight_x = weight_x
        self.weight_y = weight_y
        self.weight_schedule = weight_schedule
        self.beta = beta
        self.normalise = normalise
        self.pixel_mean: Tensor | None = None
        self.pixel_std: Tensor | None = None
        self.blocks: list[nn.Module] = []
        self.auxiliary = nn.ModuleList()

    # ---------------------------------------------------------------- joining model and loop

    def attach(self, model: nn.Module) -> None:
        """Cuts the model and builds what its blocks are trained with, on the model's device.

        Raises:
            UserError: the model has no ``chain()``, or cannot be cut or headed as asked.
        """
        if not (self.input_shape and self.classes):
            raise UserError(
                "Local learning trains blocks by classifying: it needs a data set with classes and"
                " inputs of one shape."
            )
        chain_of: Callable[[], Chain] | None = getattr(model, "chain", None)
        if chain_of is None:
            raise UserError(
                f"Local learning cannot cut {type(model).__name__} into blocks: it has no chain()"
                " of units. Choose a ResNet or mlp."
            )
        chain = chain_of()
        ends = block_ends(len(chain.units), self.modules, self.borders)
        starts = [0, *(end + 1 for end in ends[:-1])]
        self.blocks = [
            nn.Sequential(
                *([chain.stem] if start == 0 else []),
                *chain.units[start : end + 1],
                *([chain.head] if end == ends[-1] else []),
            )
            for start, end in zip(starts, ends, strict=True)
        ]
        device = next(model.parameters()).device
        shapes = unit_shapes(chain, self.input_shape)
        self.auxiliary = nn.ModuleList(
            self._local_loss(chain, shapes, block, next_unit, len(ends))
            for block, next_unit in enumerate(starts[1:], start=1)
        ).to(device)
        if self.normalise is not None:
            self.pixel_mean, self.pixel_std = (
                torch.tensor(list(self.normalise[name]), device=device).view(-1, 1, 1)
                for name in ("mean", "std")
            )

    def _local_loss(
        self, chain: Chain, shapes: list[torch.Size], block: int, next_unit: int, blocks: int
    ) -> LocalLoss:
        """What block number ``block`` is trained with, given the unit that follows it.

        Raises:
            UserError: the features cannot be painted from, or InfoPro's weights are both zero.
        """
        unit = chain.units[next_unit]
        bridged = self.ema or self.bias
        bridge = Bridge(
            EmaOf(unit, self.momentum, self.init) if self.ema else None,
            copy_of(unit, self.init) if self.bias else None,
        )
        shape = shapes[next_unit if bridged else next_unit - 1]
        if self.loss == "predsim":
            return LocalLoss(bridge, PredSim(shape, self.classes, self.beta))
        widest = shapes[-1][0]
        head = auxiliary_head(self.head, shape, self.classes, widest, self.features, self.widen)
        if self.loss == "dgl":
            return LocalLoss(bridge, Classification(head))
        if len(shape) != 3:
            raise UserError(
                "method.loss=infopro paints images from feature maps, but this model's features"
                " are vectors: choose dgl or predsim."
            )
        # Every unit a block is the paper's K = N + 1, whose first group is the stem alone.
        modules = self.modules or (blocks if self.borders is not None else len(chain.units) + 1)
        weight_x, weight_y = (
            loss_weight(block, chain.stages[next_unit], modules, first, last, self.weight_schedule)
            for first, last in (self.weight_x, self.weight_y)
        )
        if weight_x == weight_y == 0:
            raise UserError(
                f"method.weight_x and method.weight_y are both 0 at block {block} of {blocks},"
                " which would never be trained: give one of them a first or last value above 0."
            )
        decoder = Decoder(shape[0], self.input_shape, self.decoder)
        return LocalLoss(bridge, InfoPro(head, decoder, weight_x, weight_y))

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """One optimizer for the network, the auxiliary nets and the learnable copies."""
        return factory([*model.parameters(), *self.trained()])

    def trained(self) -> list[nn.Parameter]:
        """The parameters beside the network that are trained: not those of momentum copies."""
        return [p for p in self.auxiliary.parameters() if p.requires_grad]

    @override
    def register(self, ddp_model: nn.Module) -> None:
        """Local learning trains on one device.

        Raises:
            UserError: always.
        """
        raise UserError(
            "Local learning runs one backward pass per block, which DistributedDataParallel cannot"
            " follow: choose hardware=gpu or cpu, one device a run."
        )

    # ---------------------------------------------------------------- one step

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Runs forward and backward block by block, then moves the momentum copies.

        See `Method.backward` for the arguments. The returned loss is the last block's, the only
        one that is a loss of the network.

        Raises:
            UserError: targets are no class labels.
        """
        x, target = batch
        if target.dim() != 1 or target.is_floating_point():
            raise UserError(
                "Local learning trains blocks by classifying: it needs one class label per example,"
                f" not targets of shape {tuple(target.shape[1:])} and type {target.dtype}."
            )
        image = x
        if self.loss == "infopro":
            image = unit_range(x, self.pixel_mean, self.pixel_std)
        for block, local_loss in zip(self.blocks[:-1], self.auxiliary, strict=True):
            x = block(x)
            backward(local_loss(x, image, target))  # frees this block's graph before the next
            x = x.detach()
        loss = F.cross_entropy(self.blocks[-1](x), target)
        backward(loss)
        # All at once, where the paper moves each copy after its block's backward pass: no copy is
        # used in between, and its source moves only with the optimizer's step, which is to come.
        self.follow()
        return loss.detach()

    def follow(self) -> None:
        """Moves every momentum copy towards the unit it copies."""
        update_all([part for part in self.auxiliary.modules() if isinstance(part, EmaOf)])

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
        """Clips the global norm of all gradients, those of auxiliary nets included."""
        super().clip([*parameters, *self.trained()], max_norm)

    def metrics(self) -> dict[str, float]:
        """The number of blocks, and the parameters that only training needs."""
        extra = sum(p.numel() for p in self.auxiliary.parameters())
        return {"local/blocks": len(self.blocks), "local/auxiliary_parameters": extra}

    def state_dict(self) -> dict[str, Any]:
        """The auxiliary nets and both kinds of copies."""
        return {"auxiliary": dict(self.auxiliary.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; after `attach`."""
        self.auxiliary.load_state_dict(state["auxiliary"])


def unit_shapes(chain: Chain, input_shape: Sequence[int]) -> list[torch.Size]:
    """The shape of one example's features after each unit; nothing is computed and no state moves.

    Args:
        chain: the network.
        input_shape: of one example.
    """
    # Meta tensors have shapes and no content; two examples satisfy batch norm at 1x1 pixels.
    x = torch.empty(2, *input_shape, device="meta")
    shapes = []
    with torch.no_grad():
        for piece in (chain.stem, *chain.units):
            x = copy.deepcopy(piece).to("meta")(x)
            shapes.append(x.shape[1:])
    return shapes[1:]
