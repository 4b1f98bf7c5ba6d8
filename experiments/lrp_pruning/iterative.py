"""A trained network, pruned step by step, with or without fine-tuning between the steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from repro.experiments.lrp_pruning.base import (
    draw_classes,
    draw_examples,
    measure,
    refuse_others,
    seeded,
)
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import Batch, generator_for
from repro.errors import UserError
from repro.knobs import Count, Inside, Natural, Share, checked
from repro.methods.lrp_pruning import Batches, FilterPruning
from repro.toolbox.costs import CountFlops
from repro.toolbox.dependency_graph import DependencyGraph, trace
from repro.toolbox.method import Method, OptimizerFactory
from repro.toolbox.pretrained import Base
from repro.training.procedure import Procedure, model_weights
from repro.training.supervised import Supervised


class Network(Supervised):
    """Trains the network that other arms prune, from published weights where there are some.

    Args:
        base: gives the network its first weights.
        trained: prefixes of the parameters' names that are trained; None: all.
        method: of pruning; not for here.
        settings: see `Supervised`.

    Raises:
        UserError: no parameter's name begins so.
    """

    def __init__(
        self,
        base: Base,
        method: FilterPruning,
        trained: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        del method  # all arms are given it
        super().__init__(method=Method(), **settings)
        self.base = base
        if trained is not None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad = name.startswith(tuple(trained))
            if not self.trained():
                raise UserError(f"lrp_pruning: no parameter's name begins with any of {trained}.")

    @override
    def setup(self, stage: str) -> None:
        """Takes the first weights; those of a checkpoint come after them."""
        if stage == "fit":
            self.base(self.model, self.data, self.device)


class Iterative(Procedure):
    """Scores, removes a share of all units, perhaps fine-tunes, and so on up to a rate.

    Without fine-tuning a training step is a step of pruning, and a run goes through several draws
    of references (and of classes), each from the trained network: measures are means over them.
    With fine-tuning a training step is an update.

    Args:
        model: the network.
        method: how to prune it.
        base: gives the network its weights, unless the run starts from another arm.
        optimizer: of fine-tuning.
        share: of all units that a step removes.
        goal: share of all units that is removed in the end.
        removes: false: a control that goes through all the rest.
        tune_epochs: of fine-tuning behind each step; 0: none.
        final_epochs: of fine-tuning at the end, besides.
        references: of each class; None: all training examples.
        classes: drawn classes, all that references and evaluation know of; None: all.
        draws: of references and classes.
        chunk: references scored at a time.
        judged: ``test``, or ``val`` for tuning.
        seed: of all draws.

    Raises:
        UserError: the method does not prune, or fine-tuning is to know of some classes alone.
    """

    METRICS: ClassVar = {
        f"{split}/{name}": meaning
        for split in ("val", "test")
        for name, meaning in {
            "area_accuracy": "mean of accuracy over rates from 0 to the goal (by trapezoids)",
            "accuracy_r*": "share of right examples with so many per cent of the units removed",
            "loss_r*": "cross-entropy likewise, nats",
            "untuned_accuracy_r*": "likewise, before the fine-tuning that follows",
            "final_accuracy": "in the end",
            "parameters_r*": "of the physically smaller network",
            "multiplications_r*": "of its convolutions and products, for one example",
            "removal_gap": "largest difference between its logits and those of the silenced one",
            "left_share_layer*": "of a layer's units, in the end",
            "guarded": "removals that the guard of the last units put off, mean over steps",
        }.items()
    }
    KEPT: ClassVar = ("found", "dense", "kept")

    @checked
    def __init__(
        self,
        model: nn.Module,
        method: FilterPruning,
        base: Base,
        optimizer: OptimizerFactory,
        share: Inside = 0.05,
        goal: Share = 0.9,
        removes: bool = True,
        tune_epochs: Natural = 0,
        final_epochs: Natural = 0,
        references: Count | None = 10,
        classes: Count | None = None,
        draws: Count = 1,
        chunk: Count = 500,
        judged: Literal["val", "test"] = "test",
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer)
        refuse_others(method)
        if tune_epochs and (classes is not None or draws > 1):
            raise UserError("lrp_pruning: with module.tune_epochs say classes=null and draws=1.")
        self.model, self.method, self.base = model, method, base
        self.share, self.draws = share, draws
        self.tune_epochs, self.final_epochs = tune_epochs, final_epochs
        self.references, self.classes, self.chunk = references, classes, chunk
        self.judged, self.seed = judged, seed
        method.begin(model)
        self.steps, self.removes = max(1, int(goal / share + 1e-4)), removes
        self.found: dict[str, list[float]] = {}
        self.dense: dict[str, Tensor] = {}
        self.kept = method.kept
        self.graph: DependencyGraph | None = None

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the weights of the arm that trained the network."""
        self.model.load_state_dict(model_weights(checkpoint))

    def on_train_start(self) -> None:
        """Takes the weights that all draws start from, unless the run is resumed."""
        super().on_train_start()
        if not self.dense:
            self.base(self.model, self.data, self.device)
            self.dense = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.method.kept = self.kept

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """An update of fine-tuning, and before the first one of a step the step itself."""
        epoch = int(self.trainer.num_training_batches)
        between = self.tune_epochs * epoch or 1
        step, updates = divmod(self.global_step, between)
        draw, number = divmod(step, self.steps)
        if draw < self.draws and updates == 0:
            self._prune(draw, number)
        loss = torch.zeros((), device=self.device)
        if self.tune_epochs:
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            self.descend(loss)
            self.method.silence(self.model)
        else:
            self.tick()
        if draw < self.draws and self.global_step % between == 0:
            self._measure(draw, number + 1)
        if self.global_step >= self.draws * self.steps * between + self.final_epochs * epoch:
            self._note("final_accuracy", self._evaluate(self.draws - 1)[0])
            self.trainer.should_stop = True
        return {"loss": loss.detach()}

    def _prune(self, draw: int, number: int) -> None:
        """A step of pruning; the first one of a draw begins with the trained network."""
        if number == 0:
            self.model.load_state_dict(self.dense)
            self.method.begin(self.model)
            self._measure(draw, 0)
        before = self.method.guarded
        with seeded(self.seed, 5, draw, number):
            self.method.prune(self.model, self._references(draw), self._due(number))
        self.kept = self.method.kept
        self._note("guarded", self.method.guarded - before)
        if self.tune_epochs:
            self._note(f"untuned_accuracy_{self._rate(number + 1)}", self._evaluate(draw)[0])
        if draw == 0:
            self._note_size(number + 1)

    def _measure(self, draw: int, steps: int) -> None:
        """Accuracy and loss after so many steps, and after the last one what is left."""
        accuracy, loss = self._evaluate(draw)
        self._note(f"accuracy_{self._rate(steps)}", accuracy)
        self._note(f"loss_{self._rate(steps)}", loss)
        if steps == self.steps:
            for layer, mask in enumerate(self.kept.values(), 1):
                self._note(f"left_share_layer{layer}", float(mask.float().mean()))

    @torch.no_grad()
    def _note_size(self, steps: int) -> None:
        """The size of the physically smaller network, and whether it computes the same."""
        x = self.data.take("train", torch.arange(2))[0].to(self.device)
        was_training = self.model.training
        self.model.eval()
        self.graph = self.graph or trace(self.model, x)
        smaller = self.method.shrunk(self.model, self.graph).eval()
        with CountFlops() as counted:
            logits = smaller(x)
        self._note("removal_gap", float((logits - self.model(x)).abs().max()))
        self._note(f"multiplications_{self._rate(steps)}", counted.flops / 2 / len(x))
        parameters = sum(each.numel() for each in smaller.parameters())
        self._note(f"parameters_{self._rate(steps)}", parameters)
        self.model.train(was_training)

    def _due(self, number: int) -> int:
        """How many units a step removes, so that after it the share is as its name says."""
        before, after = (round(self.share * n * self.method.total) for n in (number, number + 1))
        return after - before if self.removes else 0

    def _rate(self, steps: int) -> str:
        return f"r{round(100 * self.share * steps)}"

    def _note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def _drawn_classes(self, draw: int) -> Tensor:
        return draw_classes(self.data.classes, self.classes, generator_for(self.seed, 4, draw))

    def _references(self, draw: int) -> Batches:
        """In chunks, one at a time."""
        labels = self.data.labels("train")
        indices = torch.arange(len(labels))
        if self.references is not None:
            generator = generator_for(self.seed, 6, draw)
            indices = draw_examples(labels, self._drawn_classes(draw), self.references, generator)
        for chunk in indices.split(self.chunk):
            x, y = self.data.take("train", chunk)
            yield x.to(self.device), y.to(self.device)

    def _evaluate(self, draw: int) -> tuple[float, float]:
        """Accuracy and loss, on the examples and with the logits of the drawn classes."""
        classes = self._drawn_classes(draw)
        batches: Iterable[Batch] = getattr(self.data, f"{self.judged}_dataloader")()
        if self.classes is not None:
            wanted = torch.isin(self.data.labels(self.judged), classes).nonzero().flatten()
            batches = (self.data.take(self.judged, part) for part in wanted.split(self.chunk))
        return measure(self.model, batches, classes, self.device)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """There is nothing to validate."""

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """There is nothing to test but what was found."""

    def on_test_epoch_end(self) -> None:
        """Logs what was found, and the area under accuracy over rate."""
        means = {name: statistics.fmean(values) for name, values in self.found.items()}
        curve = [means[f"accuracy_{self._rate(steps)}"] for steps in range(self.steps + 1)]
        means["area_accuracy"] = float(np.trapezoid(curve)) / self.steps
        means["removal_gap"] = max(self.found["removal_gap"])
        self.log_dict({f"{self.judged}/{name}": value for name, value in means.items()})
