"""Puts a trained network into codebooks, and compares it with the float one."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.methods.jlcm import (
    CodebookCompression,
    Mapped,
    Recipe,
    compress_blocks,
    find_links,
    scale_neurons,
)
from repro.records import files
from repro.toolbox.codebooks import CodedWeight, read_packed, write_packed
from repro.toolbox.method import Batch
from repro.toolbox.pruning import block_layers, run_blocks
from repro.toolbox.reconstruction import Report, weight_layers
from repro.training.compression import Compression, Protocol

GIB = 8 * 2**30  # bits


@dataclass
class Setting(Protocol):
    """What a network is compressed on, how the result is compared, and what is done first.

    Attributes:
        rescale: a; each hidden neuron is first multiplied by a factor between 1/a and a, and its
            columns by the inverse. The function of a ReLU network stays the same.
    """

    rescale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale < 1:
            raise UserError(f"module.protocol.rescale is at least 1, not {self.rescale}.")


class Codebooks(Compression):
    """One training step puts one layer into codebooks; the packed weights go into artifacts.

    Args:
        model: the network.
        method: how to compress it.
        protocol: what it is calibrated and compared on.
        task: ``classification`` or ``language``.

    Raises:
        UserError: a method of training.
    """

    METRICS: ClassVar = {
        "bits/weight": "per weight in codebooks: codes, codebooks, scales, lists of groups",
        "bits/model": "per parameter of the whole model, with what stays in floats",
        "bits/disk": "per weight, counted in the packed file without its header",
        "disk/changed": "weights that differ when the packed file is read back",
        "size/gib": "of the whole model",
        "mapping/flips": "share of weights whose code is not that of the start",
        "mapping/jumps": "share of weights whose code moved by more than one value",
        "mapping/used": "share of codebooks' values that any weight has",
        "mapping/state_mb": "logits and optimizer state of the largest layer's mapping, in MB",
        "groups/implied": "share of rows whose group needs no list",
    }
    KEPT: ClassVar = ("done", "coded", "stored")

    def __init__(
        self,
        model: nn.Module,
        method: Recipe,
        protocol: Setting,
        task: str = "classification",
    ) -> None:
        super().__init__(model, protocol, task)
        if not isinstance(method, Recipe):
            raise UserError(
                f"jlcm compresses trained networks: {type(method).__name__} is for training. Use "
                "method=jlcm."
            )
        self.recipe, self.rescale = method, protocol.rescale
        self.done: list[dict[str, Any]] = []  # reports so far
        self.coded: dict[str, dict[str, Any]] = {}  # what is stored of each layer
        self.stored: dict[str, int] = {}  # its bits

    @property
    def network(self) -> nn.Module:
        """What is compressed."""
        return self.model

    def compressor(self, x: Tensor, y: Tensor | None) -> CodebookCompression:
        """What puts the model into codebooks."""
        if self.rescale > 1:
            self._rescale(x)
        return CodebookCompression(self.model, self.recipe, x, y, self.protocol.seed)

    def _rescale(self, x: Tensor) -> None:
        """Multiplies hidden neurons by factors that are uniform on a logarithmic scale."""
        generator = generator_for(self.protocol.seed, 3)
        for link in find_links(self.model, x[:4], weight_layers(self.model, x[:1])):
            exponents = 2 * torch.rand(link.count, generator=generator) - 1
            scale_neurons(self.model, link, (math.log(self.rescale) * exponents).exp())

    def reported(self, report: Report) -> None:
        """Keeps what became of a layer."""
        work = self.units
        assert isinstance(work, CodebookCompression)
        self.done.append(vars(report))
        self.stored[report.unit] = work.stored[report.unit]
        if report.unit in work.coded:
            self.coded[report.unit] = vars(work.coded[report.unit])

    def on_test_epoch_end(self) -> None:
        """Logs the test measures, and what is known of codes and bits."""
        super().on_test_epoch_end()
        self.log_dict({**self.sizes(), **self.mapping(), **self.on_disk()})

    def sizes(self) -> dict[str, float]:
        """Bits of the layers, and of the whole model."""
        weights = sum(report["weights"] for report in self.done)
        parameters = list(self.network.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        bits = sum(self.stored.values())
        total = bits + 8 * parameters[0].dtype.itemsize * (count - weights)
        rows = [(len(coded["groups"]), coded["implied"]) for coded in self.coded.values()]
        return {
            "bits/weight": bits / weights,
            "bits/model": total / count,
            "size/gib": total / GIB,
            "groups/implied": sum(n for n, implied in rows if implied)
            / max(sum(n for n, _ in rows), 1),
        }

    def mapping(self) -> dict[str, float]:
        """What became of the mapping."""
        sums = {
            name: sum(report[name] for report in self.done)
            for name in ("flips", "jumps", "weights", "used", "values")
        }
        largest = max(report["weights"] for report in self.done)
        copies = {"sgd": 2, "adam": 3}[self.recipe.mapping_optimizer]
        learns = self.recipe.learner == "joint" and self.recipe.train_mapping
        return {
            "error/relative": statistics.fmean(report["error"] for report in self.done),
            "mapping/flips": sums["flips"] / sums["weights"],
            "mapping/jumps": sums["jumps"] / sums["weights"],
            "mapping/used": sums["used"] / max(sums["values"], 1),
            "mapping/state_mb": 4 * copies * self.recipe.k * largest / 1e6 if learns else 0.0,
        }

    def on_disk(self) -> dict[str, float]:
        """Writes the packed weights, and reads them back."""
        if not self.coded:
            return {}
        file = Path(self.trainer.default_root_dir) / "artifacts" / "weights.safetensors"
        files.make_folder(file.parent)
        kept = {name: CodedWeight(**coded) for name, coded in self.coded.items()}
        bits = write_packed(file, kept)
        read = read_packed(file)
        weights = {name: coded.weight().cpu() for name, coded in kept.items()}
        return {
            "bits/disk": bits / sum(weight.numel() for weight in weights.values()),
            "disk/changed": float(
                sum(int((read[name].weight() != weights[name]).sum()) for name in weights)
            ),
        }


class Streamed(Codebooks):
    """One training step puts one block of a decoder into codebooks; no other is on the device.

    Checkpoints hold the codes of the blocks so far, and no weights.

    Raises:
        UserError: a model that does not go block by block, or a recipe that needs all of it.
    """

    def __init__(self, model: nn.Module, method: Recipe, protocol: Setting, **more: Any) -> None:
        super().__init__(model, method, protocol, **more)
        if not all(hasattr(model, stage) for stage in ("embed", "blocks", "head")):
            raise UserError(
                f"{type(model).__name__} has no blocks to stream: choose a LLaMA, or the module"
                " repro.experiments.jlcm.module.Codebooks."
            )
        if method.importance != "none" or method.learner == "product":
            raise UserError(
                "Streaming knows no gradients of the whole model, nor vectors: choose"
                " method.importance=none and another method.learner."
            )
        # Lightning moves and saves what is registered.
        self.held: list[Any] = [model]
        self.model = nn.Identity()
        self.tokens: Tensor | None = None
        self.blocks: Iterator[dict[str, Mapped]] | None = None

    @property
    def network(self) -> nn.Module:
        """The decoder."""
        network: nn.Module = self.held[0]
        return network

    @override
    def setup(self, stage: str) -> None:
        """The float decoder, and the calibration tokens."""
        if self.tokens is not None:
            return
        self.protocol.base(self.network, self.data, self.trainer.strategy.root_device)
        self.held[0].to("cpu").eval().requires_grad_(False)
        self.held.append(copy.deepcopy(self.network))
        self.tokens, _ = self.protocol.calibration(self.data.train_dataloader(), None)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compresses the next block; the batch that comes along is not looked at."""
        if self.blocks is None:
            self.blocks = self._blocks()
        for name, report in next(self.blocks).items():
            self.done.append(vars(report))
            self.stored[name] = CodedWeight(**self.coded[name]).bits()
        self.tick()
        error = torch.tensor(self.done[-1]["error"])
        self.log("train/loss", error)
        if self.global_step == len(self.held[0].blocks):
            self.trainer.should_stop = True
        return {"loss": error}

    def _blocks(self) -> Iterator[dict[str, Mapped]]:
        """The blocks to come; those of a checkpoint are taken from there."""
        assert self.tokens is not None
        kept = {name: CodedWeight(**coded) for name, coded in self.coded.items()}
        blocks = compress_blocks(
            self.held[0], self.recipe, self.tokens, self.protocol.seed, self.device,
            self.recipe.batch_size, kept,
        )  # fmt: skip
        for reports in blocks:
            self.coded = {name: vars(coded) for name, coded in kept.items()}
            if reports:
                yield reports

    def on_validation_start(self) -> None:
        """Starts from empty means, and from the codes: a checkpoint has no weights."""
        super().on_validation_start()
        layers = block_layers(self.held[0])
        for name, coded in self.coded.items():
            layers[name].weight.copy_(CodedWeight(**coded).weight())

    @override
    def outputs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of both decoders, block by block."""
        logits = []
        for decoder in self.held:
            hidden = decoder.embed(x.to("cpu"))
            run_blocks(decoder.blocks, hidden, len(x), self.device)
            logits.append(decoder.head(hidden).flatten(0, -2))
        return logits[0], logits[1], y.flatten().to("cpu")
