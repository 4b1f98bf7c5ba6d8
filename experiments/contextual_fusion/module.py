"""Trains a linear classifier on features of frozen streams, and shows it perturbed pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from repro.experiments.contextual_fusion.bench import CLEAN, LEVELS, Bench, View
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.images.composites import Composites
from repro.knobs import Fraction, NonNegative, checked
from repro.methods.contextual_fusion import (
    Stream,
    class_accuracies,
    context_scores,
    rank_correlation,
)
from repro.toolbox.adversarial import AdversarialTraining
from repro.toolbox.attacks import FGSM
from repro.toolbox.method import Batch, Method, OptimizerFactory
from repro.training.procedure import Procedure, refuse_methods

FOREGROUND, BACKGROUND = "fg", "bg"  # classifiers of one stream each; the streams have their names


class Fusion(Procedure):
    """A linear classifier on features of frozen streams; a step is a pass over all of them.

    Args:
        head: name of the classifier, among those of the bench.
        bench: called with the data and the device, returns what all arms look at.
        optimizer: of the head, called with parameters.
        penalty: alpha by stream, besides the classifier's decay; None: nothing.
        muted: streams whose test features are those of other pictures.
        measured: kinds of views that the test looks at: ``fgsm``, ``pgd``, ``blur``.
        own: budgets of FGSM against the arm's own classifier, in levels of a pixel.
        context: name of the view at which gains over the foreground are set against contexts.
        validated: names of the views whose mean accuracy is ``val/attacked``.
        method: only the plain one: there are no updates that another could change.

    Raises:
        UserError: a method, or a kind of view that there is not.
    """

    METRICS: ClassVar = {
        "train/loss": "cross-entropy with penalties, mean of the pass",
        "val/loss": "cross-entropy, nats",
        "val/accuracy": "share of right examples",
        "val/attacked": "likewise, mean over the views that are validated",
        "test/accuracy": "share of right examples, pictures as they are",
        "test/gradient_norm": "of the whole training loss: 0 has converged",
        "test/*/fgsm_*": "accuracy under FGSM against a classifier (own: the arm's), by budget",
        "test/*/pgd_*": "accuracy under projected gradient ascent, by budget",
        "test/*/fgsm": "its mean over the judged budgets",
        "test/*/pgd": "its mean over the judged budgets",
        "test/blur_*": "accuracy on blurred pictures, by standard deviation",
        "test/blur": "its mean",
        "test/own/best_single": "the better of fg and bg, each under FGSM of 1 against itself",
        "test/rho/*": "rank correlation over classes of the gain over fg with a measure of context",
        "test/share/*": "part of the weights' norm that is a stream's",
        "test/lost/*": "accuracy that is lost when a stream is at its mean",
    }

    @checked
    def __init__(
        self,
        head: str,
        bench: Callable[..., Bench],
        optimizer: OptimizerFactory,
        penalty: Mapping[str, NonNegative] | None,
        muted: Sequence[str],
        measured: Sequence[str],
        own: Sequence[NonNegative],
        context: str,
        validated: Sequence[str],
        method: Method,
    ) -> None:
        super().__init__(optimizer)
        refuse_methods(
            method,
            "contextual_fusion trains a linear classifier on features that were computed once;"
            " method {method} has nothing to change there: say method=none.",
        )
        self.head_name, self.make_bench = head, bench
        self.penalty, self.muted, self.own = dict(penalty or {}), list(muted), list(own)
        self.measured, self.context, self.validated = list(measured), context, list(validated)
        self.own_streams: dict[str, Stream] = {}  # that take the place of the bench's
        self.inherited: dict[str, Tensor] = {}
        self.fusion: Any = None  # a FeatureFusion, made in `setup`

    # -- The start --------------------------------------------------------------------------------

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the streams of an arm that trained them."""
        prefix = "fusion.streams."
        self.inherited = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }

    @override
    def setup(self, stage: str) -> None:
        """Makes, or finds, all that is computed once."""
        if self.fusion is not None:
            return
        device = self.trainer.strategy.root_device
        self.bench: Bench = self.make_bench(self.data, device)
        for name in dict.fromkeys(key.partition(".")[0] for key in self.inherited):
            stream = copy.deepcopy(self.bench.stream(name))
            prefix = f"{name}."
            stream.load_state_dict(
                {
                    k.removeprefix(prefix): v
                    for k, v in self.inherited.items()
                    if k.startswith(prefix)
                }
            )
            self.own_streams[name] = stream
        z_ND = self.features("train", CLEAN)
        fusion = self.bench.fusion(self.head_name, z_ND, self.own_streams)
        self.head_training = self.bench.training(fusion, z_ND, self.penalty)
        self.fusion = fusion

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters of the head."""
        return list(self.fusion.head.parameters())

    # -- Training ---------------------------------------------------------------------------------

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Passes over all training features once; the batch that comes along is not looked at."""
        optimizer: Any = self.optimizers()
        loss = self.head_training.epoch(optimizer.optimizer, self.global_step)
        self.tick()  # without gradients it moves nothing
        self.log("train/loss", loss)
        return {"loss": loss}

    # -- Evaluation -------------------------------------------------------------------------------

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Waits for the end: features are there for the whole split."""

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Waits for the end."""

    @torch.no_grad()
    def on_validation_epoch_end(self) -> None:
        """Logs what settings are chosen by."""
        logits, y = self.fusion.logits(self.features("val", CLEAN)), self.bench.labels("val")
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log("val/accuracy", _accuracy(logits, y))
        views = {view.name: view for view in self.bench.perturbations.views()}
        attacked = [self._accuracy("val", views[name]) for name in self.validated]
        if attacked:
            self.log("val/attacked", sum(attacked) / len(attacked))

    @torch.inference_mode(False)
    @torch.no_grad()
    def on_test_epoch_end(self) -> None:
        """Logs all that claims read."""
        self.log_dict(self.measures())

    def measures(self) -> dict[str, float]:
        """All that is measured on the test split, by name."""
        values = {"test/accuracy": self._accuracy("test", CLEAN)} | self.convergence()
        values |= self._views() | self._white_box() | self._streams()
        return values | (self._contexts() if "fgsm" in self.measured else {})

    def convergence(self) -> dict[str, float]:
        """How far training came: a head that has not converged makes penalties look good."""
        with torch.enable_grad():
            return {"test/gradient_norm": self.head_training.gradient_norm()}

    def features(self, split: str, view: View) -> Tensor:
        """Features (N, D) of the arm's streams, those of other pictures where a stream is muted."""
        names = self.bench.reads(self.head_name)
        z: dict[str, Tensor] = {}
        if set(names) - self.own_streams.keys():
            z = self.bench.features(split, view)
        if self.own_streams:
            z = z | self.bench.seen(split, view, self.own_streams)
        for name in self.muted if split == "test" else ():
            order = torch.randperm(len(z[name]), generator=generator_for(self.bench.seed))
            z[name] = z[name][order.to(z[name].device)]
        return torch.cat([z[name] for name in names], 1)

    def _accuracy(self, split: str, view: View) -> float:
        logits = self.fusion.logits(self.features(split, view))
        return _accuracy(logits, self.bench.labels(split))

    def _views(self) -> dict[str, float]:
        """Accuracies by view, and their means over budgets."""
        perturbations = self.bench.perturbations
        kinds: dict[str, list[View]] = {kind: [] for kind in self.measured}
        for view in perturbations.views()[1:]:
            kind = view.name.rpartition("/")[2].partition("_")[0]
            kinds.get(kind, []).append(view)
        found = {
            f"test/{view.name}": self._accuracy("test", view)
            for views in kinds.values()
            for view in views
        }
        for kind, views in kinds.items():
            for threat in dict.fromkeys(view.threat for view in views):
                name = kind if threat is None else f"{threat}/{kind}"
                amounts = perturbations.blur if threat is None else perturbations.judged
                judged = [found.get(f"test/{name}_{amount:g}") for amount in amounts]
                if None not in judged:
                    found[f"test/{name}"] = sum(judged) / len(judged)  # type: ignore[arg-type]
        return found

    def _white_box(self) -> dict[str, float]:
        """FGSM against the arm's own classifier, which is what the paper does not look at."""
        y = self.bench.labels("test")
        found = {}
        for budget in self.own:
            attack = FGSM(budget / LEVELS)
            view = View("own", None, lambda _, x, y, attack=attack: attack(self.fusion, x, y))
            logits = self.bench.seen("test", view, {"own": self.fusion})["own"]
            found[f"test/own/fgsm_{budget:g}"] = _accuracy(logits, y)
        views = {view.name: view for view in self.bench.perturbations.views()}
        singles = [(name, views.get(f"{name}/fgsm_1")) for name in (FOREGROUND, BACKGROUND)]
        if self.own:
            found["test/own/best_single"] = max(
                _accuracy(self._single(name, view), y) for name, view in singles if view is not None
            )
        return found

    def _single(self, name: str, view: View) -> Tensor:
        """Logits of the bench's own classifier of one stream on test pictures."""
        return self.bench.head(name).logits(self.bench.features("test", view)[name])

    def _contexts(self) -> dict[str, float]:
        """Rank correlations of each class's gain over the foreground with its context."""
        views = {view.name: view for view in self.bench.perturbations.views()}
        y, view = self.bench.labels("test"), views[self.context]
        alone = class_accuracies(self._single(FOREGROUND, view), y)
        fused = class_accuracies(self.fusion.logits(self.features("test", view)), y)
        z_b, labels = self.bench.features("train", CLEAN)[BACKGROUND], self.bench.labels("train")
        scores = context_scores(z_b, labels, len(fused))
        if isinstance(self.data, Composites):
            scores["strength"] = self.data.strength_K
        gains = (fused - alone).cpu()
        return {
            f"test/rho/{name}": rank_correlation(gains, score.cpu())
            for name, score in scores.items()
        }

    def _streams(self) -> dict[str, float]:
        """How much of the decision is each stream's."""
        z_ND, y = self.features("test", CLEAN), self.bench.labels("test")
        whole = _accuracy(self.fusion.logits(z_ND), y)
        found = {}
        for name in self.fusion.widths:
            without = self.fusion.logits(self.fusion.without(z_ND, name))
            found[f"test/share/{name}"] = float(self.fusion.share(name).detach())
            found[f"test/lost/{name}"] = whole - _accuracy(without, y)
        return found


class Retrained(Fusion):
    """The usual defence: classifier and network trained on clean and adversarial pictures.

    It starts from the classifier that is attacked, and a step is a batch of pictures.

    Args:
        eps: budget of FGSM against the network as it is, in levels of a pixel.
        clean: weight of the loss on pictures as they are.
        whole: False: the network stays frozen, and only the head is trained.
        **fusion: see `Fusion`.
    """

    @checked
    def __init__(self, eps: NonNegative, clean: Fraction, whole: bool, **fusion: Any) -> None:
        super().__init__(**fusion)
        self.defence = AdversarialTraining(FGSM(eps / LEVELS), clean)
        self.whole = whole

    @override
    def setup(self, stage: str) -> None:
        """Opens the networks, and takes over the head."""
        is_there = self.fusion is not None
        super().setup(stage)
        if is_there:
            return
        start, fusion = self.bench.head(self.head_name), self.fusion
        fusion.head.load_state_dict(start.head.state_dict())
        if self.whole:
            names = self.bench.reads(self.head_name)
            self.own_streams = {name: _opened(self.bench.stream(name)) for name in names}
            fusion.streams.update(self.own_streams)

    def trained(self) -> list[torch.nn.Parameter]:
        """The head's parameters, and those of networks that are not frozen."""
        return [parameter for parameter in self.fusion.parameters() if parameter.requires_grad]

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update on pictures that attack the network as it is."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        x, y = batch
        loss = self.defence.backward(self._loss, (self.bench.pictures(x), y), self.manual_backward)
        self.tick()
        self.log("train/loss", loss)
        return {"loss": loss}

    def convergence(self) -> dict[str, float]:
        """Nothing: its features change."""
        return {}

    def _loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.fusion(batch[0]), batch[1])


def _opened(stream: Stream) -> Stream:
    """A copy of a frozen stream that can be trained."""
    opened = copy.deepcopy(stream)
    opened.frozen = False
    return opened.requires_grad_()


def _accuracy(logits_NK: Tensor, y_N: Tensor) -> float:
    return float((logits_NK.argmax(1) == y_N).double().mean())
