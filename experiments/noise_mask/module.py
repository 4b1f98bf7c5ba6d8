"""Heating and fine-tuning, measured class by class, and by probes on concepts that are new."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from repro.data.images.modalities import balanced_shots
from repro.errors import UserError
from repro.knobs import Count, Natural, Share, checked
from repro.toolbox.method import Batch
from repro.training.procedure import model_weights
from repro.training.supervised import Supervised


class TwoStages(Supervised):
    """`Supervised` with the paper's macro scores; a second stage starts from a first one's weights.

    A run is one stage. What starts from another arm takes over its classifier, head included, and
    nothing else: neither policy nor optimizer.

    Args:
        *args: see `Supervised`.
        fade: factor on the test images for a second measurement; None: none.
        auroc: whether to measure it (a thousand classes make half a million pairs).
        average_last: test the mean of the weights and statistics at the end of so many last epochs;
            0: the last ones.
        transfer: data sets whose classes are new, by name.
        shots: of each class, for linear probes on them, rising; empty: no probes.
        draws: of these shots, the same for all arms of a seed.
        **kwargs: see `Supervised`.

    Raises:
        UserError: a knob is out of range, shots do not rise, or there is nothing to probe with.
    """

    METRICS: ClassVar = {
        "val/balanced_accuracy": "mean recall of the classes, in [0, 1]",
        "test/balanced_accuracy": "mean recall of the classes, in [0, 1]",
        "test/macro_f1": "mean F1 of the classes, in [0, 1]",
        "test/macro_precision": "mean precision of the classes, in [0, 1]",
        "test/macro_auroc": "mean area under the curve of all pairs of classes, in [0, 1]",
        "test/faded_balanced_accuracy": "the balanced accuracy on images times `fade`",
        "test/probe_*": "accuracy of linear probes, by data set and shots, mean over draws",
        "test/probe_gap_*": "log-odds of that accuracy at the fewest shots less those at the most",
    }

    @checked
    def __init__(
        self,
        *args: Any,
        fade: Share | None = None,
        auroc: bool = False,
        average_last: Natural = 0,
        transfer: Mapping[str, Any] | None = None,
        shots: Sequence[Count] = (),
        draws: Count = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if list(shots) != sorted(set(shots)):
            raise UserError(f"module.shots rise, but these do not: {list(shots)}.")
        if shots and not isinstance(getattr(self.model, "fc", None), nn.Linear):
            raise UserError(
                f"Probes take the features before a last linear layer `fc`, which"
                f" {type(self.model).__name__} has not: set module.shots=[]."
            )
        self.fade, self.auroc, self.average_last = fade, auroc, average_last
        self.transfer, self.shots, self.draws = dict(transfer or {}), tuple(shots), draws
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.average: AveragedModel | None = None
        if average_last:
            self.average = AveragedModel(self.model, use_buffers=True).requires_grad_(False)

    # -- Training ---------------------------------------------------------------------------------

    @override
    def start_from(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(model_weights(checkpoint))

    def on_train_epoch_end(self) -> None:
        """Adds the weights to their average, in the last epochs."""
        super().on_train_epoch_end()
        epochs = self.trainer.max_epochs or 0
        if self.average is not None and self.current_epoch >= epochs - self.average_last:
            self.average.update_parameters(self.model)

    # -- Measuring --------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Starts from no outputs."""
        super().on_validation_start()
        self.outputs = []

    def on_test_start(self) -> None:
        """Puts the averaged weights in place, where there are any."""
        super().on_test_start()
        if self.average is not None and self.average.n_averaged:
            self.model.load_state_dict(self.average.module.state_dict())

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        x, labels = batch
        logits = self.model(x)
        self.note(self.measure(logits, labels), len(labels))
        shown = [logits]
        if self.split == "test" and self.fade is not None:
            shown.append(self.model(self.fade * x))
        self.outputs.append((torch.stack(shown, 1).float().cpu(), labels.cpu()))

    @override
    def measured(self) -> dict[str, Tensor]:
        measured = super().measured()
        outputs = self.outputs
        if self.trainer.world_size > 1:
            everybodys: list[Any] = [None] * self.trainer.world_size
            distributed.all_gather_object(everybodys, outputs)
            outputs = [each for part in everybodys for each in part]
        logits_NVK, labels_N = (torch.cat(each) for each in zip(*outputs, strict=True))
        scores = {"balanced_accuracy": balanced_accuracy(logits_NVK[:, 0], labels_N)}
        if self.split == "test":
            scores |= macro_scores(logits_NVK[:, 0], labels_N, self.auroc)
            if self.fade is not None:
                scores["faded_balanced_accuracy"] = balanced_accuracy(logits_NVK[:, 1], labels_N)
            for name, data in self.transfer.items():
                scores |= self._probed(name, data)
        return measured | {name: torch.tensor(value) for name, value in scores.items()}

    def _probed(self, name: str, data: Any) -> dict[str, float]:
        """The accuracies of linear probes on a data set's test split, and their gap."""
        if not self.shots:
            return {}
        with headless(self.model) as features:
            known, new = (
                [(features(x.to(self.device)).cpu(), y) for x, y in batches(data, split)]
                for split in ("train", "test")
            )
        (x, y), (x_test, y_test) = (
            (torch.cat([f for f, _ in part]), torch.cat([y for _, y in part]))
            for part in (known, new)
        )
        accuracies = {}
        for shots in self.shots:
            drawn = (balanced_shots(y, shots, data.seed, shots, d) for d in range(self.draws))
            accuracies[shots] = float(np.mean([probe(x[i], y[i], x_test, y_test) for i in drawn]))
        few, many = (log_odds(accuracies[n], len(y_test)) for n in (self.shots[0], self.shots[-1]))
        found = {f"probe_{name}_{shots}": value for shots, value in accuracies.items()}
        return found | {f"probe_gap_{name}": few - many}


def balanced_accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """The mean recall of the classes that occur, in [0, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted and does not occur
        return float(balanced_accuracy_score(labels_N, logits_NK.argmax(1)))


def macro_scores(logits_NK: Tensor, labels_N: Tensor, auroc: bool) -> dict[str, float]:
    """Means over classes, as scikit-learn has them; the area is that of all pairs of classes."""
    found = logits_NK.argmax(1)
    scores = {
        "macro_f1": float(f1_score(labels_N, found, average="macro")),
        "macro_precision": float(
            precision_score(labels_N, found, average="macro", zero_division=0.0)
        ),
    }
    if auroc:
        shares = logits_NK.double().softmax(1).numpy()
        area = roc_auc_score(
            labels_N, shares, multi_class="ovo", average="macro", labels=range(shares.shape[1])
        )
        scores["macro_auroc"] = float(area)
    return scores


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Test accuracy of a logistic regression on standardised features, in [0, 1]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(classifier.fit(x, y).score(x_test, y_test))


def log_odds(accuracy: float, count: int) -> float:
    """``log a / (1 - a)``, kept half an example of ``count`` away from 0 and 1."""
    a = min(max(accuracy, 0.5 / count), 1 - 0.5 / count)
    return math.log(a / (1 - a))


def batches(data: Any, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of a split, in its stored order and not augmented."""
    count = len(data.labels(split))
    for chosen in torch.arange(count).split(data.eval_batch_size):
        yield data.take(split, chosen)


@contextmanager
def headless(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its last linear layer, in evaluation mode; afterwards as it was."""
    head, training = model.fc, model.training
    model.fc = nn.Identity()
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        model.fc = head
        model.train(training)
