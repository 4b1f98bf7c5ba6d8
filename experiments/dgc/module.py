"""Supervised training that also reports what its communication costs, counted and modelled."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call

from repro.methods.dgc import DataParallel, DeepGradientCompression, NetworkModel
from repro.models import AlexNet, ResNetImageNet
from repro.toolbox.method import Batch
from repro.toolbox.timing import median_seconds
from repro.training.supervised import Supervised

GIGABIT = 125e6  # bytes per second of a 1 Gbit/s link
IMAGENET = {"input_shape": [3, 224, 224], "classes": 1000}
PAPER_MODELS = {"resnet50": ResNetImageNet, "alexnet": AlexNet}
TIMED_PASSES = 20


class CompressedTraining(Supervised):
    """Adds to `Supervised` the quantities that claims C2 and C8 are about.

    Args:
        *args: see `Supervised`.
        nodes: workers of the modelled cluster.
        latency: seconds per message on that cluster.
        **kwargs: see `Supervised`.
    """

    METRICS: ClassVar = {
        "comm/resnet50_ratio": "bytes of the whole dense gradient of the paper's ImageNet model"
        " over those that the final density would send, counted from its tensors' shapes",
        "comm/alexnet_ratio": "likewise",
        # These carry the prefix of timings because they depend on the machine.
        "time/modelled_speedup_1gbit": "by `NetworkModel`, from the measured compute time of a"
        " worker and the counted bytes of the last epoch",
        "time/modelled_speedup_10gbit": "likewise, on a faster network",
    }
    KEPT: ClassVar = ("costs",)

    def __init__(self, *args: Any, nodes: int = 64, latency: float = 50e-6, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nodes = nodes
        self.latency = latency
        self.costs: dict[str, float] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One update; keeps the batch for timing at the end."""
        self.last_batch = batch
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        """Times one worker's forward and backward pass and models the cluster's speed-up."""
        if not isinstance(self.method, DataParallel) or not hasattr(self, "last_batch"):
            return
        counted = self.method.metrics()
        if isinstance(self.method, DeepGradientCompression):
            self.costs |= {
                f"comm/{name}_ratio": counted_ratio(name, self.method.densities[-1])
                for name in PAPER_MODELS
            }
        if "comm/sparse_bytes_per_step" not in counted:
            return
        sparse, dense = counted["comm/sparse_bytes_per_step"], counted["comm/dense_bytes_per_step"]
        if counted["comm/density"] == 1:  # everything is reduced, nothing is gathered
            sparse, dense = 0.0, sparse + dense
        seconds = self._seconds_of_a_pass(self.method.cluster.rows)
        for gigabits in (1, 10):
            network = NetworkModel(self.latency, gigabits * GIGABIT)
            speed_up = network.speed_up(self.nodes, seconds, sparse, dense)
            self.costs[f"time/modelled_speedup_{gigabits}gbit"] = speed_up

    def on_test_epoch_end(self) -> None:
        """Logs the costs with the test measures."""
        super().on_test_epoch_end()
        self.log_dict(self.costs)

    def _seconds_of_a_pass(self, workers: int) -> float:
        """Median time of a forward and backward pass over one worker's part of a batch."""
        inputs, target = (tensor.tensor_split(workers)[0] for tensor in self.last_batch)
        # Copies, because a pass moves the running statistics of batch norm.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}

        @torch.enable_grad()
        def one_pass() -> None:
            loss = self.training_loss(functional_call(self.model, buffers, (inputs,)), target)
            torch.autograd.grad(loss, list(self.model.parameters()))

        return median_seconds({"pass": one_pass}, TIMED_PASSES)["pass"]


@functools.cache
def counted_ratio(model: str, density: float) -> float:
    """Bytes of a dense gradient over those sent at a density: 6 per entry, 4 per dense entry.

    Tensors of fewer than two dimensions stay dense. Run lengths of more than 16 bits are not
    counted: at the paper's density a gap that long is rare.

    Args:
        model: ``resnet50`` or ``alexnet``.
        density: part of each compressed tensor that is sent, in (0, 1].
    """
    with torch.device("meta"):
        network = PAPER_MODELS[model](**IMAGENET)
    return 4 * sum(p.numel() for p in network.parameters()) / sent_bytes(network, density)


def sent_bytes(network: nn.Module, density: float) -> int:
    """Bytes that one worker sends per step in the paper's encoding."""
    parameters: Iterable[nn.Parameter] = network.parameters()
    return sum(
        6 * math.ceil(p.numel() * density) if p.dim() > 1 else 4 * p.numel() for p in parameters
    )
