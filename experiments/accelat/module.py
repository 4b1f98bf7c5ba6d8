"""Adversarial training from a pretrained start, watched on held-out adversarial examples."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.files import cached_arrays
from repro.data.base.modules import SPLIT_NAMES, TensorData, digest
from repro.errors import UserError
from repro.knobs import Count, checked
from repro.toolbox.attacks import Attack, in_chunks
from repro.toolbox.method import Batch
from repro.training.supervised import Supervised

Start = Callable[[nn.Module, TensorData, torch.device], None]


class AdversariallyTrained(Supervised):
    """Adds to `Supervised` a start, static adversarial examples, attacks, and a clock.

    With ``refresh=static`` the adversarial examples are made once, against the model as it starts,
    for all splits, and training sees nothing else (the published code). With ``refresh=batch``
    training sees what `method` makes of clean batches.

    ``adversarial_accuracy`` on the control split is what drives a schedule and stops the clock: on
    the static examples, or else under `probe` against the model as it is. It is no robust accuracy
    where it is static: robust is what survives `attacks`, made afresh at the end.

    Args:
        *args: see `Supervised`.
        start: gives the model its weights; None keeps its own draw.
        static: makes the static examples.
        probe: attacks the control split after every epoch when nothing is static.
        refresh: ``static`` or ``batch``.
        static_sees: ``logits``, or ``probabilities`` to hand the attack softmax outputs as if they
            were logits, like the published code.
        static_chunk: examples attacked at a time.
        attacks: what the trained model meets on the test split, by name.
        targets: control accuracy at which the clock stops, for each ``refresh``.
        control_split: ``val``; ``test`` only to imitate the published code, whose schedule and
            reported accuracy see the same examples.
        frozen_norm: keep batch norm in inference mode, on the statistics of the start.
        **kwargs: see `Supervised`.

    Raises:
        UserError: a knob is unknown, or the data have no classes.
    """

    METRICS: ClassVar = {
        "val/adversarial_accuracy": "share of right control examples, static or under the probe",
        "test/adversarial_accuracy": "likewise, of static test examples",
        "test/*_accuracy": "share of right examples under an attack, by its name",
        "test/worst_accuracy": "share that is right under all of them",
        "val/reached": "whether the target was reached, 0 or 1",
        "val/epochs_to_target": "absent while it was not",
        "val/gradients_to_target": "forward and backward passes per training example until then, "
        "making static examples included",
        "time/seconds_to_target": "seconds of training until then",
        "val/lr_at_peak": "learning rate of the epoch with the largest control accuracy",
        "lr": "learning rate",
    }
    KEPT: ClassVar = ("history", "seconds")

    @checked
    def __init__(
        self,
        *args: Any,
        static: Attack,
        targets: Mapping[str, float],
        probe: Attack,
        attacks: Mapping[str, Attack],
        refresh: Literal["static", "batch"] = "static",
        start: Start | None = None,
        static_sees: Literal["logits", "probabilities"] = "logits",
        static_chunk: Count = 1280,
        control_split: Literal["val", "test"] = "val",
        frozen_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.task != "classification":
            raise UserError(f"Attacks want a class to be wrong; this data set's task: {self.task}.")
        self.start = start
        self.static = static if refresh == "static" else None
        self.static_sees = static_sees
        self.static_chunk = static_chunk
        self.probe = probe
        self.attacks = attacks
        self.target = targets[refresh]
        self.control_split = control_split
        self.frozen_norm = frozen_norm
        self.history: list[dict[str, float]] = []  # per epoch: accuracy, lr, seconds
        self.seconds = 0.0

    @override
    def setup(self, stage: str) -> None:
        """Before a fit: loads or pretrains the weights, and makes the static examples.

        All of it is a function of the seed and the data alone. So every schedule of a seed meets
        the same examples, and a resumed run finds those that the killed one had.

        Raises:
            UserError: the data set does not fit into memory.
        """
        if stage != "fit":
            return
        data = self.data
        if not isinstance(data, TensorData):
            raise UserError(
                f"Data set '{data.name}' does not fit into memory, as static sets must."
            )
        device = self.trainer.strategy.root_device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(data.seed)
            as_floats(data)
            if self.start is not None:
                self.start(self.model, data, device)
            self.model.to(device).eval()
            torch.manual_seed(data.seed)  # a start that was kept draws less than one that is made
            if self.static is not None:
                self.seconds = self._make_static(self.static, data, device)
        if self.control_split == "test":
            data.splits["val"] = data.splits["test"]

    def on_train_epoch_start(self) -> None:
        """Tells the method the epoch; keeps batch norm out of it where it is frozen."""
        super().on_train_epoch_start()
        if self.frozen_norm:
            self.model.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One timed update."""
        begun = time.perf_counter()
        result = super().training_step(batch, batch_idx)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - begun
        return result

    def _make_static(self, attack: Attack, data: TensorData, device: torch.device) -> float:
        """Puts adversarial inputs in the place of the training ones, and beside the others.

        They are kept on disk, for other arms of the same seed, under all that they depend on.

        Returns:
            The seconds that making them took, whether now or for another arm.
        """
        model = self.model if self.static_sees == "logits" else softmax_of(self.model)
        splits = {name: tensors for name, tensors in data.splits.items() if name in SPLIT_NAMES}

        def make() -> dict[str, Any]:
            begun = time.perf_counter()
            arrays: dict[str, Any] = {
                name: in_chunks(attack, model, x, y, self.static_chunk, device).numpy()
                for name, (x, y, *_) in splits.items()
            }
            return arrays | {"seconds": np.array(time.perf_counter() - begun)}

        tensors = [*self.model.state_dict().values()]
        tensors += [tensor for name in SPLIT_NAMES for tensor in splits[name]]
        words = f"{digest(tensors)} {attack} {self.static_sees} {self.static_chunk} {data.seed}"
        name = f"adversarial-{data.name}-{hashlib.sha256(words.encode()).hexdigest()[:32]}"
        kept = cached_arrays(name, make)
        for split, (x, y, *_) in splits.items():
            adversarial = torch.from_numpy(kept[split])
            data.splits[split] = (adversarial, y) if split == "train" else (x, y, adversarial)
        return float(kept["seconds"])

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Measures clean and adversarial examples (control), or everything (test)."""
        x, y, *static = batch
        logits = self.model(x)
        self.note(self.measure(logits, y), len(y))
        testing = self.trainer.testing
        if static or not testing:
            adversarial = static[0] if static else self.probe(self.model, x, y)
            self.note({"adversarial_accuracy": self._right(adversarial, y).float()})
        if testing and self.attacks:
            right = {
                name: self._right(attack(self.model, x, y), y)
                for name, attack in self.attacks.items()
            }
            right["worst"] = torch.stack([logits.argmax(1) == y, *right.values()]).all(0)
            self.note({f"{name}_accuracy": each.float() for name, each in right.items()})

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model(x).argmax(1) == y

    def log_measured(self) -> Mapping[str, Any]:
        """Logs what was measured; of a validation also what the clock says."""
        measured = super().log_measured()
        if self.split == "val" and not self.trainer.sanity_checking:
            optimizer: Any = self.optimizers()
            self.history.append(
                {
                    "accuracy": float(measured["adversarial_accuracy"]),
                    "lr": optimizer.param_groups[0]["lr"],
                    "seconds": self.seconds,
                }
            )
            self.log_dict(self._read_clock())
        return measured

    def _read_clock(self) -> dict[str, float]:
        accuracies = [row["accuracy"] for row in self.history]
        peak = max(range(len(accuracies)), key=accuracies.__getitem__)
        epochs = epochs_to(accuracies, self.target)
        read = {
            "lr": self.history[-1]["lr"],
            "val/lr_at_peak": self.history[peak]["lr"],
            "val/reached": float(epochs is not None),
        }
        if epochs is not None:
            each = self.method.metrics().get("cost/gradients_per_epoch", 1.0)
            read["val/epochs_to_target"] = float(epochs)
            read["val/gradients_to_target"] = epochs * each + getattr(self.static, "steps", 0)
            read["time/seconds_to_target"] = self.history[epochs - 1]["seconds"]
        return read


def epochs_to(values: Sequence[float], target: float) -> int | None:
    """How many epochs it takes until a value is at least the target; None if none is."""
    return next((e for e, value in enumerate(values, start=1) if value >= target), None)


def as_floats(data: TensorData) -> None:
    """Turns stored images into what the model takes, so that static examples stand among them.

    Raises:
        UserError: the data set augments.
    """
    if data.normalise is None:
        return
    if data.augment is not None:
        raise UserError(
            f"Data set '{data.name}': static examples belong to whole images; dataset.augment=null."
        )
    for name, (x, *rest) in data.splits.items():
        data.splits[name] = (data.normalise(x), *rest)
    data.normalise = None


def softmax_of(model: nn.Module) -> Any:
    """The model's probabilities instead of its logits."""
    return lambda x: model(x).softmax(1)
