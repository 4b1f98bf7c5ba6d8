"""Supervised training whose result is the network without what training drove to zero."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, Fraction, Inside, NonNegative, checked
from repro.methods.otov3 import Channels, SegmentGraph, Segments, SparseTraining
from repro.toolbox.costs import multiply_accumulates
from repro.toolbox.method import Batch
from repro.toolbox.pretrained import Base
from repro.training.procedure import model_weights
from repro.training.supervised import Supervised

PROBES = 64  # random inputs on which full and extracted network are compared


class Compressed(Supervised):
    """Adds to `Supervised` the extracted network, which is what is tested, and what it costs.

    Args:
        input_shape: of one example.
        mode: ``pruning`` or ``erasing``: what a parent's zeros are looked for in.
        inherit: what is taken over from the arm that this one starts from: its ``widths``, for a
            network of that size with fresh weights; or as ``products`` its share of
            multiply-accumulates, as the method's target.
        targets: shares to which the distance is reported besides the method's own.
        cuts: numbers of operators: would the most redundant ones alone disconnect the network?
        mixup: alpha of the Beta distribution of MixUp, one draw a batch; 0: none.
        label_smoothing: of the training loss.
        base: gives the network its first weights.
        settings: see `Supervised`.
    """

    METRICS: ClassVar = {
        "test/loss": "of the extracted network",
        "test/accuracy": "of the extracted network, in [0, 1]",
        "test/difference": "largest difference of full and extracted network on random inputs, in"
        " units of the largest output",
        "test/sparsity": "share of groups that are zero, in [0, 1]",
        "test/gap": "distance of what was removed from the target, both as shares",
        "test/gap/*": "the same from another target, in percent",
        "test/products": "multiply-accumulates of the extracted network for one example",
        "test/products_share": "of those of the full network",
        "test/parameters": "of the extracted network",
        "test/parameters_share": "of those of the full network",
        "test/emptied": "layers (or cells) of which nothing was left",
        "test/width/*": "channels of a layer that are left; 1 for an operator that is",
        "test/score_cuts/*": "1 if that many most redundant operators disconnect the network",
        "test/random_cuts/*": "share of all sets of so many operators that do",
    }

    @checked
    def __init__(
        self,
        *args: Any,
        input_shape: Sequence[Count],
        mode: Literal["pruning", "erasing"] = "pruning",
        inherit: Literal["widths", "products"] = "widths",
        targets: Sequence[Inside] = (),
        cuts: Sequence[Count] = (),
        mixup: NonNegative = 0.0,
        label_smoothing: Fraction = 0.0,
        base: Base | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.example = torch.zeros(2, *input_shape)
        self.mode, self.inherit, self.targets, self.cuts = mode, inherit, targets, cuts
        self.mixup, self.label_smoothing, self.base = mixup, label_smoothing, base
        self.tested = self.model  # what the test measures

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the size of the network that another arm found, in one way or the other."""
        parent = copy.deepcopy(self.model)
        parent.load_state_dict(model_weights(checkpoint))
        structure = self._structure(parent)
        if self.inherit == "widths":
            self.model = fresh(structure.extract(self.model, structure.zero()))
            return
        assert isinstance(structure, Channels)
        assert isinstance(self.method, SparseTraining)
        self.method.measure, self.method.target = "products", structure.share(structure.zero())

    def _structure(self, model: nn.Module) -> Channels | Segments:
        kind = Channels if self.mode == "pruning" else Segments
        return kind(model, self.example.to(next(model.parameters()).device))

    @override
    def setup(self, stage: str) -> None:
        """Before a fit: the weights that training starts from."""
        if stage == "fit" and self.base is not None:
            self.base(self.model, self.data, self.device)

    def loss(self, batch: Batch) -> Tensor:
        """The mean training loss, of mixed examples if they are to be mixed."""
        inputs, target = batch
        if not self.mixup:
            return self._loss(self.model(inputs), target)
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        order = torch.randperm(len(target), device=target.device)
        output = self.model(share * inputs + (1 - share) * inputs[order])
        return share * self._loss(output, target) + (1 - share) * self._loss(output, target[order])

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def on_test_start(self) -> None:
        """Extracts the network, and measures all that needs no test data."""
        super().on_test_start()
        if self.method_state is not None:  # of a run that was trained in another process
            self.method.load_state_dict(self.method_state)
            self.method_state = None
        example = self.example.to(self.device)
        self.tested = self.model
        found: dict[str, float] = {}
        if isinstance(self.method, SparseTraining):
            structure = self.method.structure or self._structure(self.model)
            zero = structure.zero()
            self.tested = structure.extract(self.model, zero).eval()
            found |= self._removed(self.method, structure, zero)
        for name, count in (
            ("products", lambda model: multiply_accumulates(model, example[:1])),
            ("parameters", lambda model: sum(p.numel() for p in model.parameters())),
        ):
            found[f"test/{name}"] = count(self.tested)
            found[f"test/{name}_share"] = found[f"test/{name}"] / count(self.model)
        self.counts = found

    def _removed(
        self, method: SparseTraining, structure: Channels | Segments, zero: Tensor
    ) -> dict[str, float]:
        """What is zero, and whether it is cut out without a trace."""
        share = float(zero.float().mean())
        of_target = share
        if method.measure == "products":
            assert isinstance(structure, Channels)
            of_target = structure.share(zero)
        widths = structure.widths(zero)
        found = {
            "test/sparsity": share,
            "test/gap": abs(of_target - method.target),
            "test/difference": self._difference(),
            "test/emptied": float(structure.emptied(zero)),
            **{f"test/gap/{100 * each:.0f}": abs(share - each) for each in self.targets},
            **{f"test/width/{name}": float(width) for name, width in widths.items()},
        }
        if isinstance(structure, Segments) and method.scores is not None:
            order = method.scores.argsort(descending=True, stable=True).tolist()
            for count in self.cuts:
                is_cut = not structure.graph.valid(order[:count])
                found[f"test/score_cuts/{count}"] = float(is_cut)
                found[f"test/random_cuts/{count}"] = share_that_cuts(structure.graph, count)
        return found

    @torch.no_grad()
    def _difference(self) -> float:
        """Between the full and the extracted network, on random inputs."""
        shape = (PROBES, *self.example.shape[1:])
        probes = torch.randn(shape, generator=generator_for(0)).to(self.device)
        full, part = self.model(probes), self.tested(probes)
        return float((full - part).abs().max() / full.abs().max())

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the measures: at the test, of the extracted network."""
        inputs, target = batch
        model = self.tested if self.split == "test" else self.model
        self.note(self.measure(model(inputs), target), len(target))

    def on_test_epoch_end(self) -> None:
        """Logs what was measured beside the test data, too."""
        super().on_test_epoch_end()
        self.log_dict(self.counts)


def fresh(model: nn.Module) -> nn.Module:
    """Draws the weights anew, as PyTorch draws those of layers of these sizes."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return model


def share_that_cuts(graph: SegmentGraph, count: int) -> float:
    """The share of all sets of so many operators without which the output hangs on nothing."""
    sets = itertools.combinations(range(len(graph.removable)), count)
    cut = sum(not graph.valid(erased) for erased in sets)
    return cut / math.comb(len(graph.removable), count)
