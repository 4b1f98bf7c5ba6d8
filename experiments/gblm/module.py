"""A trained language model, pruned to one pattern after the other and measured each time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.modules import TextData, check_counts
from repro.errors import UserError
from repro.records import files
from repro.toolbox.pretrained import Base
from repro.toolbox.pruning import (
    Decoder,
    GradientNorms,
    Pattern,
    Pruner,
    block_layers,
    column_structure,
    decoder_gradients,
    next_token_losses,
    prune_blocks,
    run_blocks,
)
from repro.training.procedure import Procedure

PICTURED = 256  # outputs and inputs of a layer of which a mask is kept, at most


@dataclass
class Calibration:
    """The sequences that a pruner looks at; the keys of ``module.calibration``.

    Attributes:
        sequences: N.
        length: T, tokens of each.
        batch_size: sequences in a pass; changes nothing but speed and memory.
        seed: of the draw.
    """

    sequences: int
    length: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_counts(
            "calibration",
            sequences=self.sequences, length=self.length, batch_size=self.batch_size,
        )  # fmt: skip


@dataclass
class Evaluation:
    """On what a pruned model is measured; the keys of ``module.evaluation``.

    Attributes:
        length: tokens of a window; windows do not overlap.
        batch_size: windows in a pass.
        val_windows: at most, spread evenly over the split; None: all.
        test_windows: likewise.
    """

    length: int
    batch_size: int
    val_windows: int | None = None
    test_windows: int | None = None


class Pruning(Procedure):
    """One training step prunes the dense model to one pattern and measures what is left of it.

    After the last pattern the model, and so the checkpoint, is the one that was pruned last. A
    corner of one layer's mask is kept in ``artifacts/mask_<p>.npy`` (True: pruned), for pictures.

    Gradients come from the dense model, once, whatever the patterns; activations from the model
    whose earlier blocks are pruned already.

    Args:
        model: maps tokens to logits and has the stages of `repro.toolbox.pruning.Decoder`.
        method: what prunes a layer.
        base: gives the model its weights.
        patterns: fractions, or N:M such as ``"2:4"``.
        calibration: what the pruner looks at.
        evaluation: what the pruned model is measured on.
        sequential: later blocks see the outputs of pruned ones (else of dense ones).
        stream: keep the model on the CPU and only the block at work on the device; the checkpoint
            then holds no weights.
        picture: layer whose masks are kept, as ``<block>.<layer>``; None: none.

    Raises:
        UserError: no pattern, a model without stages, or a method that does not prune.
    """

    METRICS: ClassVar = {  # * is a pattern: 60 (per cent) or 2of4
        "val/loss": "mean over patterns of val/loss_*",
        "val/loss_*": "mean over windows of the mean cross-entropy of a window",
        "test/loss_*": "likewise",
        "test/perplexity_*": "exponential of test/loss_*",
        "structure/columns_*": "mean over layers of `column_structure`",
        "pruned/fraction_*": "share of the blocks' weights that are zero",
        "time/seconds_*": "seconds for pruning and measuring",
        "time/gradient_seconds": "seconds for the gradients",
    }
    KEPT: ClassVar = ("measured",)  # all else is a function of the config
    data: TextData

    def __init__(
        self,
        model: nn.Module,
        method: Pruner,
        base: Base,
        patterns: Sequence[float | str],
        calibration: Mapping[str, int],
        evaluation: Mapping[str, int | None],
        sequential: bool = True,
        stream: bool = False,
        picture: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(method, Pruner):
            raise UserError(
                f"gblm prunes a trained model: {type(method).__name__} is for training. "
                "Choose method=gblm or method=sparsegpt."
            )
        if not all(hasattr(model, stage) for stage in ("embed", "blocks", "head")):
            raise UserError(
                f"gblm goes block by block, and {type(model).__name__} has no blocks: "
                "choose model=llama_tiny or another LLaMA."
            )
        self.patterns = [Pattern(text) for text in patterns]
        names = [pattern.name for pattern in self.patterns]
        if not names or len(set(names)) < len(names):
            raise UserError(f"module.patterns={list(patterns)}: say each pattern once.")
        self.method, self.base = method, base
        self.calibration = Calibration(**calibration)
        self.evaluation = Evaluation(**evaluation)  # type: ignore[arg-type]
        self.sequential, self.stream, self.picture = sequential, stream, picture
        # Lightning moves and saves what is registered, which is not wanted while streaming.
        self.held: list[Any] = [model]
        if not stream:
            self.model = model
        self.measured: dict[str, float] = {}
        self.dense: dict[str, Tensor] = {}
        self.gradients: GradientNorms | None = None

    @property
    def decoder(self) -> Decoder:
        """The model."""
        decoder: Decoder = self.held[0]
        return decoder

    @override
    def setup(self, stage: str) -> None:
        """Gives the model its weights and keeps those of its linear layers, to start from again.

        Raises:
            UserError: the data are no text.
        """
        if self.dense:
            return
        if not isinstance(self.data, TextData):
            raise UserError(f"gblm prunes language models: data set '{self.data.name}' is no text.")
        self.base(self.held[0], self.data, self.trainer.strategy.root_device)
        self.held[0].eval()
        self.dense = {
            name: layer.weight.detach().to("cpu", copy=True)
            for name, layer in block_layers(self.decoder).items()
        }

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Prunes the dense model to the next pattern and measures it; the batch is not used."""
        pattern = self.patterns[self.global_step]
        began = time.perf_counter()
        self._restore()
        calibration = self.calibration
        tokens_NT = self.data.sample(calibration.sequences, calibration.length, calibration.seed)
        if self.method.needs_gradients and self.gradients is None:
            self.gradients = decoder_gradients(
                self.decoder, tokens_NT, self.method.grad_norm, calibration.batch_size,
                self.device if self.stream else None,
            )  # fmt: skip
            self.measured["time/gradient_seconds"] = time.perf_counter() - began
        with torch.no_grad():
            self.measured |= self._prune(tokens_NT, pattern) | self._measure(pattern)
        self.measured[f"time/seconds_{pattern.name}"] = time.perf_counter() - began
        losses = [value for name, value in self.measured.items() if name.startswith("val/loss_")]
        self.log_dict({**self.measured, "val/loss": statistics.fmean(losses)})
        self.tick()
        if self.global_step == len(self.patterns):
            self.trainer.should_stop = True
        return {"loss": torch.tensor(losses[-1])}

    @torch.no_grad()
    def _restore(self) -> None:
        for name, layer in block_layers(self.decoder).items():
            layer.weight.copy_(self.dense[name])

    def _prune(self, tokens_NT: Tensor, pattern: Pattern) -> dict[str, float]:
        home = next(self.held[0].parameters()).device
        x_NTD = torch.cat([self.decoder.embed(part.to(home)) for part in tokens_NT.split(1)])
        structure, zeros, weights = [], 0, 0

        def look(name: str, weight: Tensor) -> None:
            nonlocal zeros, weights
            pruned = weight == 0
            if name == self.picture:
                self._keep(pruned, pattern)
            structure.append(column_structure(pruned))
            zeros, weights = zeros + int(pruned.sum()), weights + weight.numel()

        prune_blocks(
            self.decoder.blocks, x_NTD, self.method, pattern, self.gradients,
            self.calibration.batch_size, self.device if self.stream else None,
            self.sequential, look,
        )  # fmt: skip
        return {
            f"structure/columns_{pattern.name}": statistics.fmean(structure),
            f"pruned/fraction_{pattern.name}": zeros / weights,
        }

    def _keep(self, pruned: Tensor, pattern: Pattern) -> None:
        file = Path(self.trainer.default_root_dir) / "artifacts" / f"mask_{pattern.name}.npy"
        files.make_folder(file.parent)
        corner = pruned[:PICTURED, :PICTURED].cpu().numpy()
        files.write_atomically(file, lambda opened: np.save(opened, corner))

    def _measure(self, pattern: Pattern) -> dict[str, float]:
        settings, measured = self.evaluation, {}
        for split, most in (("val", settings.val_windows), ("test", settings.test_windows)):
            windows = self.data.cut(split, settings.length, most)
            loss = self._loss(windows, settings.batch_size)
            measured[f"{split}/loss_{pattern.name}"] = loss
        # Of a ruined model the exponential may be out of range; perplexity is then "very large".
        measured[f"test/perplexity_{pattern.name}"] = math.exp(min(loss, 700.0))
        return measured

    def _loss(self, tokens_MT: Tensor, batch_size: int) -> float:
        """The mean over windows of the mean cross-entropy of a window."""
        model = self.held[0]
        home = next(model.parameters()).device
        parts = [part.to(home) for part in tokens_MT.split(batch_size)]
        if self.stream:
            x_MTD = torch.cat([model.embed(part) for part in parts])
            run_blocks(model.blocks, x_MTD, batch_size, self.device)
            outputs = (model.head(x_BTD) for x_BTD in x_MTD.split(batch_size))
        else:
            outputs = (model(part) for part in parts)
        losses = [
            next_token_losses(logits, part).double()
            for logits, part in zip(outputs, parts, strict=True)
        ]
        return float(torch.cat(losses).mean())
