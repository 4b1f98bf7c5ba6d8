"""Language-model training that stops now and then to measure the gradient noise of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from repro.experiments.lanton.measures import (
    Pairs,
    iid_pairs,
    largest_change,
    rank_correlation,
    spread,
    sum_over_largest,
    without_shape,
)
from torch import Tensor
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Probability, checked
from repro.methods.lanton import LayerwiseRates, layer_groups
from repro.methods.lanton.layers import views
from repro.toolbox.lmo import NormBall
from repro.toolbox.method import Batch
from repro.training.supervised import Supervised

LATE = 0.4  # fraction of training from which on probes count for what is asked of all of them


@checked
@dataclass
class Probe:
    """When and how the noise is measured; the keys of ``module.probe``.

    Attributes:
        ball: whose dual norm measures it.
        at: fractions of training, rising; none: never.
        pairs: of batches that are drawn each time.
        seed: of these batches.
    """

    ball: NormBall
    at: Sequence[Probability] = ()
    pairs: Count = 8
    seed: int = 0


class NoiseStudy(Supervised):
    """`Supervised` training of a language model, with probes of the noise of its hidden matrices.

    A probe draws pairs of further batches, at the present weights (option II of the paper, with
    exact norms): the ground truth that the method's own estimate is compared with.

    Args:
        *args: see `Supervised`.
        probe: see `Probe`.
        **kwargs: see `Supervised`.

    Raises:
        UserError: the task is another, or there are probes without the method that has layers.
    """

    METRICS: ClassVar = {
        "val/loss_early": "validation loss after the first epoch",
        "cost/noise_share": "operations for the noise over all others of a step (6 per weight and"
        " token, and those of the directions)",
        "noise/spread_attention": "largest over smallest noise of the square hidden matrices, at"
        f" the probe after {LATE:.0%} of training at which it is least",
        "noise/spread_attention_iid": "likewise of independent entries",
        "noise/spread_all": "likewise of all hidden matrices, noise over that of independent"
        " entries in the same shape",
        "noise/spread_all_iid": "likewise of independent entries",
        "noise/spread_raw": "likewise of all hidden matrices, as it is",
        "noise/spread_raw_iid": "likewise of independent entries",
        "noise/order_kept": "rank correlation of the layers' noise at the first and the last probe",
        "noise/largest_change": "change of a layer's share of all noise between them, at most",
        "noise/sum_over_largest": "sum of the noise over layers x largest, at the last probe",
        "noise/rank_tracked": f"mean over probes after {LATE:.0%} of the rank correlation of the"
        " method's H with the noise",
        "noise/sigma/*": "noise of a layer at a probe (metrics.csv)",
        "noise/tracked/*": "root of the method's H of a layer at a probe (metrics.csv)",
        "noise/rank_gradient": "likewise of the squared norm of a gradient",
    }
    KEPT = ("early", "records")

    def __init__(self, *args: Any, probe: Probe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if probe.at and not isinstance(self.method, LayerwiseRates):
            raise UserError("lanton probes layers of method=lanton: set module.probe.at=[].")
        if self.task != "language":
            raise UserError(f"lanton trains language models; this data set's task: {self.task}.")
        self.probe = probe
        self.early = 0.0
        self.records: list[dict[str, Any]] = []

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update, and before it a probe if one is due."""
        steps = int(self.trainer.estimated_stepping_batches)
        due = [f for f in self.probe.at if round(f * (steps - 1)) == self.global_step]
        if due:
            self.records.append(self._measure(due[0]))
        return super().training_step(batch, batch_idx)

    def _measure(self, fraction: float) -> dict[str, Any]:
        """The noise of hidden layers now: by further batches, and as the method has it."""
        method = self.method
        assert isinstance(method, LayerwiseRates)
        groups = [
            group
            for group in layer_groups(self.model, method.transposed, method.fused)
            if group["role"] == "hidden"
        ]
        found, pairs = Pairs(self.probe.ball), self.probe.pairs
        size, length = self.data.batch_size, self.data.sequence_length + 1
        seed = 1_000_003 * self.probe.seed + self.global_step
        windows = self.data.sample(2 * pairs * size, length, seed).to(self.device)
        drawn = windows.view(pairs, 2, size, length)
        for one, other in drawn:
            found.add(self._gradients(one, groups), self._gradients(other, groups))
        shapes = [list(g.shape) for g in self._gradients(drawn[0, 0], groups)]
        tracked = method.lanton.measured_noise("hidden") if method.lanton is not None else None
        self.model.zero_grad()
        names = [
            f"{name}.{part}" if group["parts"] > 1 else name
            for group in groups
            for name in group["names"]
            for part in range(group["parts"])
        ]
        rows = {"sigma": found.variance, "tracked": [] if tracked is None else tracked.tolist()}
        for kind, values in rows.items():
            # Empty before the method has seen a difference.
            pairs_of = zip(names, values, strict=False)
            self.log_now({f"noise/{kind}/{name}": value**0.5 for name, value in pairs_of})
        return {
            "fraction": fraction,
            "shapes": shapes,
            "variance": found.variance,
            "gradient": found.gradients,
            "tracked": rows["tracked"],
        }

    def _gradients(self, tokens: Tensor, groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Gradients of the hidden layers on a batch of windows (B, T + 1)."""
        self.model.zero_grad()
        self.manual_backward(self.loss((tokens[:, :-1], tokens[:, 1:])))
        return [
            layer.clone()
            for group in groups
            for parameter in group["params"]
            for layer in views(parameter.grad, group)
        ]

    def on_train_epoch_end(self) -> None:
        """Adds the cost of the noise."""
        super().on_train_epoch_end()
        counted = self.method.metrics()
        if "lanton/flops_noise" in counted:
            tokens = self.data.batch_size * self.data.sequence_length
            passes = 6 * sum(p.numel() for p in self.model.parameters()) * tokens
            others = passes + counted["lanton/flops_direction"]
            self.log("cost/noise_share", counted["lanton/flops_noise"] / others)

    def on_validation_epoch_end(self) -> None:
        """Keeps the first epoch's loss."""
        super().on_validation_epoch_end()
        if self.current_epoch == 0 and not self.trainer.sanity_checking:
            self.early = float(self.trainer.callback_metrics["val/loss"])
        self.log("val/loss_early", self.early)

    def on_test_epoch_end(self) -> None:
        """Adds what the probes have found."""
        super().on_test_epoch_end()
        if self.records:
            shapes, probe = self.records[-1]["shapes"], self.probe
            iid = iid_pairs(probe.ball, shapes, probe.pairs, probe.seed)
            constants = iid_pairs(probe.ball, shapes, 4 * probe.pairs, probe.seed + 1)
            self.log_dict(summary(self.records, iid.variance, constants.variance))


def summary(
    records: Sequence[Mapping[str, Any]], iid: Sequence[float], constants: Sequence[float]
) -> dict[str, float]:
    """What probes say about the claims.

    Args:
        records: what `NoiseStudy` keeps of its probes, in the order of training.
        iid: variances of independent entries, measured as the records' are.
        constants: the same by other and more draws, to take the shape out.
    """
    late = [record for record in records if record["fraction"] >= LATE] or list(records)
    square = [i for i, (out, inputs) in enumerate(records[0]["shapes"]) if out == inputs]
    first, last = records[0]["variance"], records[-1]["variance"]

    def attention(variances: Sequence[float]) -> float:
        return spread([variances[i] for i in square])

    def everywhere(variances: Sequence[float]) -> float:
        return spread(without_shape(variances, constants))

    found = {
        "noise/order_kept": rank_correlation(first, last),
        "noise/largest_change": largest_change(first, last),
        "noise/sum_over_largest": sum_over_largest(last),
    }
    measures = {"spread_attention": attention, "spread_all": everywhere, "spread_raw": spread}
    for name, measure in measures.items():
        found[f"noise/{name}"] = min(measure(record["variance"]) for record in late)
        found[f"noise/{name}_iid"] = measure(iid)
    for name, key in {"rank_tracked": "tracked", "rank_gradient": "gradient"}.items():
        if all(record[key] for record in late):
            found[f"noise/{name}"] = fmean(
                rank_correlation(record[key], record["variance"]) for record in late
            )
    return found
