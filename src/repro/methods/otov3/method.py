"""The optimiser of the paper as a method: DHSPG and H2SPG, and what they are compared with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repro.errors import UserError
from repro.knobs import Count, Fraction, Known, Natural, NonNegative, Positive, checked
from repro.methods.otov3.scores import SCORES, Evidence
from repro.methods.otov3.structures import Channels, Segments
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory


class SparseTraining(Method):
    """Trains with any optimizer, and drives just enough groups of parameters to exact zero.

    With x a group and g the direction of the optimizer's step (x - lr g; momentum, Adam's scaling
    and weight decay included), after `start` epochs of plain training:

    1. *Partition*, once: by a score of redundancy G_p, the groups that may become zero; the rest
       are trained plainly for ever.
    2. *Penalty*: x~ = x - lr (g + lambda x / |x|) for every group of G_p. Adaptive lambda: where
       <x, g> < 0, so that the plain step would lengthen the group, ::

           lo = -<x, g> / |x|           above it |x| shrinks
           hi = -|g|^2 |x| / <x, g>     below it f falls
           lambda_g = clip(amplify lo, lambda, lambda bound),  or (lo + hi) / 2 where that is >= hi

    3. *Half-space projection*: x~ becomes zero where <x~, x> < epsilon |x|^2, and stays zero.
    4. Once `target` is reached, penalties end; what is not zero is trained plainly.

    The limits of the knobs are other methods: `candidates="all"` without adaption is HSPG (OTOv1),
    `shrink="proximal"` group lasso, `shrink="at_once"` one-shot pruning with retraining,
    `shrink="gradual"` HESSO.

    Args:
        target: share of groups (or of multiply-accumulates, see ``measure``) that is removed.
        start: epochs of plain training before the partition.
        penalty: lambda.
        adaptive: whether lambda follows each group as above.
        amplify: see above.
        bound: see above.
        epsilon: of the projection: 0 waits until a group crosses the origin's half-space, 0.95
            projects one that a single step shrinks by 5 %.
        tolerance: by how much more than the target the share of G_p is.
        least: groups that stay in every layer (pruning mode).
        multiple: the number that stays is a multiple of this (pruning mode).
        candidates: G_p is ``redundant``, by score, or ``all``.
        score: see `repro.methods.otov3.scores`.
        within: G_p is redrawn at random within each layer, with the same counts: a control.
        shrink: ``half_space`` | ``proximal`` | ``none`` (the penalty alone) | ``at_once`` (zero at
            the partition) | ``gradual`` (times (T - t - 1) / (T - t) over `over` steps).
        project_from: epochs before which nothing is projected (HSPG).
        over: T, steps of ``gradual``.
        stop: whether penalties end at the target.
        measure: what the target is a share of: ``groups`` or ``products`` (multiply-accumulates).
        mode: ``pruning`` removes channels, ``erasing`` whole operators (H2SPG).
        valid: in erasing mode, whether G_p has to leave a path from input to output.
        smoothing: w, of the moving average of scores before the partition (erasing mode).
        seed: of random scores.

    Attributes:
        structure: the groups, once a first batch was seen.
        zero: (G,) which are zero.
        chosen: (G,) G_p, once it is chosen.
    """

    METRICS: ClassVar = {"sparsity/groups": "share of groups that are zero, in [0, 1]"}
    optimizer_: Optimizer

    @checked
    def __init__(
        self,
        target: Fraction = 0.7,
        start: Natural = 6,
        penalty: NonNegative = 1e-3,
        adaptive: bool = True,
        amplify: Positive = 2.0,
        bound: Positive = 10.0,
        epsilon: Fraction = 0.0,
        tolerance: Fraction = 0.05,
        least: Count = 1,
        multiple: Count = 1,
        candidates: Literal["redundant", "all"] = "redundant",
        score: Annotated[str, Known(tuple(SCORES))] = "both",
        within: bool = False,
        shrink: Literal["half_space", "proximal", "none", "at_once", "gradual"] = "half_space",
        project_from: Natural = 0,
        over: Count = 1,
        stop: bool = True,
        measure: Literal["groups", "products"] = "groups",
        mode: Literal["pruning", "erasing"] = "pruning",
        valid: bool = True,
        smoothing: Fraction = 0.9,
        seed: int = 0,
    ) -> None:
        if measure == "products" and mode == "erasing":
            raise UserError(
                "otov3 counts products of channels: with method.mode=erasing say groups."
            )
        self.target, self.start = target, start
        self.penalty, self.adaptive, self.amplify, self.bound = penalty, adaptive, amplify, bound
        self.epsilon, self.tolerance = epsilon, tolerance
        self.least, self.multiple = least, multiple
        self.candidates, self.score, self.within = candidates, score, within
        self.shrink, self.project_from, self.over = shrink, project_from, over
        self.stop, self.measure = stop, measure
        self.mode, self.valid, self.smoothing = mode, valid, smoothing
        self.generator = torch.Generator().manual_seed(seed)
        self.structure: Channels | Segments | None = None
        self.epoch = self.shrunk = 0
        self.zero: Tensor | None = None
        self.chosen: Tensor | None = None
        self.scores: Tensor | None = None
        self.before: list[Tensor] = []
        self.lr = 0.0

    # -- Hooks of a training loop -----------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Keeps the model; its graph is traced with the first batch."""
        self.model = model

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """Builds the optimizer, and keeps it for its learning rate.

        Raises:
            UserError: it keeps no learning rate.
        """
        optimizer = super().optimizer(model, factory)
        if "lr" not in optimizer.param_groups[0]:
            raise UserError("otov3 needs an optimizer with a learning rate.")
        self.optimizer_ = optimizer
        return optimizer

    def start_epoch(self, epoch: int) -> None:
        """Notes the epoch."""
        self.epoch = epoch

    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Plain gradients; the first batch is what the graph is traced with."""
        if self.structure is None:
            self.find(batch[0][:2].detach())
        return super().backward(loss_of, batch, backward)

    def find(self, inputs: Any) -> Channels | Segments:
        """Finds the groups, by an example of the inputs.

        A `UserError` says so if there are none.
        """
        if self.mode == "erasing":
            self.structure = Segments(self.model, inputs, self.valid)
        else:
            self.structure = Channels(self.model, inputs, self.least, self.multiple)
        device = self.structure.blocks.sizes.device
        if self.zero is None:
            self.zero = torch.zeros(self.structure.blocks.count, dtype=torch.bool)
        self.zero = self.zero.to(device)
        self.chosen = None if self.chosen is None else self.chosen.to(device)
        self.scores = None if self.scores is None else self.scores.to(device)
        return self.structure

    def before_step(self, _model: nn.Module) -> None:
        """Keeps what the step is about to change, if it is needed."""
        assert self.structure is not None
        self.lr = float(self.optimizer_.param_groups[0]["lr"])
        averages = self.mode == "erasing" and self.chosen is None
        if self.epoch >= self.start or averages:
            self.before = self.structure.blocks.copies()

    @torch.no_grad()
    def after_step(self, _model: nn.Module) -> None:
        """Penalises, projects, and keeps zero what is zero."""
        if not self.before or self.lr == 0:
            return
        before, self.before = self.before, []
        known = self._evidence(before)
        if self.chosen is None:
            self._average(SCORES[self.score](known))
            if self.epoch < self.start:
                return
            self.chosen = self._partition()
        self._shrink(before, known)

    def metrics(self) -> dict[str, float]:
        """The share of zero groups."""
        return {} if self.zero is None else {"sparsity/groups": float(self.zero.float().mean())}

    def state_dict(self) -> dict[str, Any]:
        """The groups that are zero or may become so, scores, counts and the generator."""
        return {
            "zero": self.zero,
            "chosen": self.chosen,
            "scores": self.scores,
            "counts": [self.epoch, self.shrunk],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.zero, self.chosen, self.scores = state["zero"], state["chosen"], state["scores"]
        self.epoch, self.shrunk = state["counts"]
        self.generator.set_state(state["generator"].cpu())

    # -- What is removed --------------------------------------------------------------------------

    def extract(self) -> nn.Module:
        """The network without what is zero, as a copy: it computes the same.

        Raises:
            UserError: no batch was seen yet.
        """
        if self.structure is None:
            raise UserError("otov3 traces a network with the first batch: train, or call find().")
        return self.structure.extract(self.model, self.structure.zero())

    def removed(self) -> float:
        """The share that is removed, of what the target is a share of."""
        assert self.structure is not None
        assert self.zero is not None
        if self.measure == "groups":
            return float(self.zero.float().mean())
        assert isinstance(self.structure, Channels)
        return self.structure.share(self.zero)

    # -- A step -----------------------------------------------------------------------------------

    def _evidence(self, before: list[Tensor]) -> Evidence:
        """Norms and products of what the groups were and where the optimizer took them."""
        assert self.structure is not None
        blocks = self.structure.blocks
        moved = [
            (old - slab.parameter) / self.lr for old, slab in zip(before, blocks.slabs, strict=True)
        ]
        return Evidence(
            squares=blocks.sums(old.square() for old in before),
            products=blocks.sums(old * g for old, g in zip(before, moved, strict=True)),
            directions=blocks.sums(g.square() for g in moved),
            sizes=blocks.sizes,
            generator=self.generator,
        )

    def _average(self, score: Tensor) -> None:
        """In erasing mode a moving average over all steps so far; else the latest alone."""
        if self.scores is None or self.mode == "pruning":
            self.scores = score
        else:
            self.scores = self.smoothing * self.scores + (1 - self.smoothing) * score

    def _partition(self) -> Tensor:
        """G_p."""
        assert self.structure is not None
        assert self.scores is not None
        if self.candidates == "all":
            return torch.ones_like(self.scores, dtype=torch.bool)
        groups = len(self.scores)
        if self.measure == "products":
            count = self._of_size()
        else:
            exact = self.shrink in ("at_once", "gradual") or self.mode == "erasing"
            tolerance = 0.0 if exact else self.tolerance
            count = int(groups * min(self.target + tolerance, 0.999) + 1e-9)
        chosen = self.structure.redundant(self.scores, count)
        return self.structure.shuffled(chosen, self.generator) if self.within else chosen

    def _of_size(self) -> int:
        """How many groups, by score, leave closest to the target's share of products."""
        assert isinstance(self.structure, Channels)
        assert self.scores is not None
        nothing = torch.zeros_like(self.scores, dtype=torch.bool)
        asked = (1 - self.target) * self.structure.products(nothing)

        def excess(count: int) -> float:
            assert isinstance(self.structure, Channels)
            assert self.scores is not None
            return self.structure.products(self.structure.redundant(self.scores, count)) - asked

        fewest = bisect_left(range(len(self.scores)), True, key=lambda count: excess(count) <= 0)
        return min((max(fewest - 1, 0), fewest), key=lambda count: abs(excess(count)))

    def _shrink(self, before: list[Tensor], known: Evidence) -> None:
        """The step's second half: penalty and projection of G_p, zero for what is zero."""
        assert self.structure is not None
        assert self.zero is not None
        assert self.chosen is not None
        alive = self.chosen & ~self.zero
        # The share before this step: one step may pass the target by some groups.
        if self.stop and self.removed() >= self.target - 1e-9:
            alive = torch.zeros_like(alive)
        if self.shrink in ("half_space", "none"):
            self._penalise(before, known, alive)
        elif self.shrink == "proximal":
            self._contract(known, alive)
        elif self.shrink == "at_once":
            self.zero = self.zero | alive
        else:
            self._fade(alive)
        if bool(self.zero.any()):
            self.structure.blocks.scale_(~self.zero)

    def _penalise(self, before: list[Tensor], known: Evidence, alive: Tensor) -> None:
        """Trial step and half-space projection."""
        assert self.structure is not None
        assert self.zero is not None
        norms = known.squares.sqrt()
        factors = -self.lr * self._lambdas(known) / (norms + 1e-8) * alive
        self.structure.blocks.add_(before, factors)
        if self.shrink == "half_space" and self.epoch >= self.project_from:
            trial = known.squares - self.lr * known.products + factors * known.squares
            near = alive & (trial < self.epsilon * known.squares)
            self.zero = self.zero | self._needed(near, trial / known.squares)

    def _needed(self, near: Tensor, order: Tensor) -> Tensor:
        """Of groups near zero those to project: all, or as many as a share of products asks.

        One step may project many groups, and some channels take a tenth of what is left.
        """
        assert self.zero is not None
        if self.measure == "groups" or not self.stop:
            return near
        assert isinstance(self.structure, Channels)
        taken, ranked = torch.zeros_like(near), order.argsort()
        for number in ranked[near[ranked]].tolist():
            if self.structure.share(self.zero | taken) >= self.target:
                break
            taken[number] = True
        return taken

    def _lambdas(self, known: Evidence) -> Tensor:
        """The penalty of each group."""
        base = torch.full_like(known.squares, self.penalty)
        if not self.adaptive:
            return base
        norms = known.squares.sqrt()
        grows = known.products < 0
        inner = torch.where(grows, known.products, -torch.ones_like(base))
        low = -inner / norms.clamp_min(1e-30)
        high = -known.directions * norms / inner
        raised = (self.amplify * low).clamp(self.penalty, self.penalty * self.bound)
        raised = torch.where(raised >= high, (low + high) / 2, raised)
        return torch.where(grows, raised, base)

    def _contract(self, known: Evidence, alive: Tensor) -> None:
        """The proximal operator of lambda |x|, after the step."""
        assert self.structure is not None
        assert self.zero is not None
        lr = self.lr
        after = known.squares - 2 * lr * known.products + lr**2 * known.directions
        factors = (1 - lr * self.penalty / after.clamp_min(1e-30).sqrt()).clamp_min(0)
        factors = torch.where(alive, factors, torch.ones_like(factors))
        self.structure.blocks.scale_(factors)
        self.zero = self.zero | (alive & (factors == 0))

    def _fade(self, alive: Tensor) -> None:
        """Times (T - t - 1) / (T - t), so that T steps lead from the first norm to zero."""
        assert self.structure is not None
        assert self.zero is not None
        left = max(self.over - self.shrunk, 1)
        self.shrunk += 1
        factors = torch.where(alive, (left - 1) / left, 1.0)
        self.structure.blocks.scale_(factors)
        if left == 1:
            self.zero = self.zero | alive
