"""Adversarial training from a pretrained start, watched on held-out adversarial examples."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from repro.experiments.accelat.pretraining import Start
from torch import Tensor, nn

from repro.data.base.files import cached_arrays
from repro.data.base.modules import SPLIT_NAMES, TensorData, digest
from repro.errors import UserError
from repro.toolbox.attacks import Attack, in_chunks
from repro.toolbox.method import Batch
from repro.training.supervised import Supervised

LATE = 10  # epochs at the end over which the fluctuation is measured


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
        start: where the weights come from; None keeps the model's own draw.
        static: makes the static examples.
        probe: attacks the control split after every epoch when nothing is static.
        refresh: ``static`` or ``batch``.
        static_sees: ``logits``, or ``probabilities`` to hand the attack softmax outputs as if they
            were logits, like the published code.
        static_chunk: examples attacked at a time.
        static_cache: keep the static examples on disk, for other arms of the same seed.
        attacks: what the trained model meets on the test split, by name.
        targets: control accuracy at which the clock stops, for each ``refresh``.
        control_split: ``val``; ``test`` only to imitate the published code, whose schedule and
            reported accuracy see the same examples.
        frozen_norm: keep batch norm in inference mode, on the statistics of the start.
        **kwargs: see `Supervised`.

    Raises:
        UserError: a knob is unknown.
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
        "val/peak": "largest control accuracy",
        "val/lr_at_peak": "learning rate then",
        "val/late_std": "deviation of the control accuracy over the last ten epochs",
        "lr": "learning rate",
    }
    KEPT: ClassVar = ("history", "seconds")

    def __init__(
        self,
        *args: Any,
        static: Attack,
        targets: Mapping[str, float],
        probe: Attack,
        refresh: str = "static",
        start: Start | None = None,
        static_sees: str = "logits",
        static_chunk: int = 1280,
        static_cache: bool = False,
        attacks: Mapping[str, Attack] | None = None,
        control_split: str = "val",
        frozen_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_choice("refresh", refresh, ("static", "batch"))
        _check_choice("static_sees", static_sees, ("logits", "probabilities"))
        _check_choice("control_split", control_split, ("val", "test"))
        if self.task != "classification":
            raise UserError(f"Attacks want a class to be wrong; this data set's task: {self.task}.")
        self.start = start
        self.static = static if refresh == "static" else None
        self.static_sees = static_sees
        self.static_chunk = static_chunk
        self.static_cache = static_cache
        self.probe = probe
        self.attacks = dict(attacks or {})
        self.target = targets[refresh]
        self.control_split = control_split
        self.frozen_norm = frozen_norm
        self.history: list[dict[str, float]] = []  # per epoch: accuracy, lr, seconds
        self.seconds = 0.0

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
                self.seconds = self._make_static(data, device)
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

    def _make_static(self, data: TensorData, device: torch.device) -> float:
        """Puts adversarial inputs in the place of the training ones, and beside the others.

        Returns:
            The seconds that making them took, whether now or for another arm.
        """
        attack = self.static
        assert attack is not None

        def make() -> dict[str, Any]:
            model = self.model if self.static_sees == "logits" else softmax_of(self.model)
            size = self.static_chunk
            begun = time.perf_counter()
            arrays: dict[str, Any] = {
                name: in_chunks(attack, model, x, y, size, device).numpy()
                for name, (x, y, *_) in data.splits.items()
                if name in SPLIT_NAMES
            }
            arrays["seconds"] = np.array(time.perf_counter() - begun)
            return arrays

        made = make() if not self.static_cache else cached_arrays(self._static_key(data), make)
        for name in SPLIT_NAMES:
            x, y = data.splits[name][:2]
            adversarial = torch.from_numpy(made[name])
            data.splits[name] = (adversarial, y) if name == "train" else (x, y, adversarial)
        return float(made["seconds"])

    def _static_key(self, data: TensorData) -> str:
        """Names the static examples by all that they depend on."""
        tensors = [*self.model.state_dict().values()]
        tensors += [tensor for name in SPLIT_NAMES for tensor in data.splits[name]]
        words = (
            f"{digest(tensors)} {self.static} {self.static_sees} {self.static_chunk} {data.seed}"
        )
        return f"adversarial-{data.name}-{hashlib.sha256(words.encode()).hexdigest()[:32]}"

    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Measures clean and adversarial examples (control), or everything (test)."""
        x, y, *static = batch
        super().evaluate((x, y), batch_idx)
        testing = bool(self.trainer.testing)
        inputs: dict[str, Tensor] = {}
        if static:
            inputs["adversarial"] = static[0]
        elif not testing:
            inputs["adversarial"] = self.probe(self.model, x, y)
        if testing:
            inputs |= {name: attack(self.model, x, y) for name, attack in self.attacks.items()}
        worst = self.model(x).argmax(1) == y
        for name, attacked in inputs.items():
            right = self.model(attacked).argmax(1) == y
            if name != "adversarial":
                worst &= right
            self.note({f"{name}_accuracy": right.float()})
        if testing and self.attacks:
            self.note({"worst_accuracy": worst.float()})

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
            "val/peak": accuracies[peak],
            "val/lr_at_peak": self.history[peak]["lr"],
            "val/late_std": statistics.pstdev(accuracies[-LATE:]),
            "val/reached": float(epochs is not None),
        }
        if epochs is not None:
            each = self.method.metrics().get("cost/gradients_per_epoch", 1.0)
            read["val/epochs_to_target"] = float(epochs)
            read["val/gradients_to_target"] = epochs * each + getattr(self.static, "steps", 0)
            read["time/seconds_to_target"] = self.history[epochs - 1]["seconds"]
        return read


def epochs_to(values: Sequence[float], target: float) -> int | None:
    """How many epochs it takes until a value is at least the target; None if none is.

    Examples:
        >>> epochs_to([0.2, 0.5, 0.4, 0.6], 0.5)
        2
        >>> epochs_to([0.2, 0.3], 0.5) is None
        True
    """
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


def _check_choice(knob: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"module.{knob} is {' or '.join(known)}, not '{value}'.")
