"""A trained language model, pruned to one pattern after the other and measured each time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.modules import TextData
from repro.errors import UserError
from repro.knobs import Count, checked
from repro.records import files
from repro.toolbox.pretrained import Base
from repro.toolbox.pruning import (
    GradientNorms,
    Pattern,
    Pruner,
    block_layers,
    column_structure,
    decoder_gradients,
    mean_loss,
    prune_blocks,
    zero_fraction,
)
from repro.training.procedure import Procedure

PICTURED = 256  # outputs and inputs of a layer of which a mask is kept, at most


@checked
@dataclass
class Calibration:
    """The sequences that a pruner looks at; the keys of ``module.calibration``."""

    sequences: Count  # N
    length: Count  # T, tokens of each
    batch_size: Count  # sequences in a pass; changes nothing but speed and memory
    seed: int  # of the draw


@checked
@dataclass
class Evaluation:
    """On what a pruned model is measured; the keys of ``module.evaluation``."""

    length: Count  # tokens of a window; windows do not overlap
    batch_size: Count  # windows in a pass
    val_windows: Count | None  # at most, spread evenly over the split; None: all
    test_windows: Count | None  # likewise


class Pruning(Procedure):
    """One training step prunes the dense model to one pattern and measures what is left of it.

    After the last pattern the model, and so the checkpoint, is the one that was pruned last. A
    corner of one layer's mask is kept in ``artifacts/mask_<p>.npy`` (True: pruned), for pictures.

    Gradients come from the dense model, once, whatever the patterns.

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
    def decoder(self) -> Any:
        """The model, a `Decoder` and an `nn.Module`."""
        return self.held[0]

    @property
    def visited(self) -> torch.device | None:
        """Where blocks go one at a time; None: the model stays as a whole where it is."""
        return self.device if self.stream else None

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
        self.base(self.decoder, self.data, self.trainer.strategy.root_device)
        self.decoder.eval()
        self.dense = {
            name: layer.weight.detach().to("cpu", copy=True)
            for name, layer in block_layers(self.decoder).items()
        }

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Prunes the dense model to the next pattern and measures it; the batch is not used."""
        pattern = self.patterns[self.global_step]
        with torch.no_grad():
            for name, layer in block_layers(self.decoder).items():
                layer.weight.copy_(self.dense[name])
        calibration = self.calibration
        tokens_NT = self.data.sample(calibration.sequences, calibration.length, calibration.seed)
        if self.method.needs_gradients and self.gradients is None:
            self.gradients = decoder_gradients(
                self.decoder, tokens_NT, self.method.grad_norm, calibration.batch_size, self.visited
            )
        with torch.no_grad():
            self._prune(tokens_NT, pattern)
            self.measured |= self._measure_masks(pattern) | self._measure_losses(pattern)
        losses = [value for name, value in self.measured.items() if name.startswith("val/loss_")]
        self.log_dict({**self.measured, "val/loss": statistics.fmean(losses)})
        self.tick()
        if self.global_step == len(self.patterns):
            self.trainer.should_stop = True
        return {"loss": torch.tensor(losses[-1])}

    def _prune(self, tokens_NT: Tensor, pattern: Pattern) -> None:
        home = next(self.decoder.parameters()).device
        x_NTD = torch.cat([self.decoder.embed(part.to(home)) for part in tokens_NT.split(1)])
        prune_blocks(
            self.decoder.blocks, x_NTD, self.method, pattern, self.gradients,
            self.calibration.batch_size, self.visited, self.sequential,
        )  # fmt: skip

    def _measure_masks(self, pattern: Pattern) -> dict[str, float]:
        layers = block_layers(self.decoder)
        if self.picture in layers:
            corner = (layers[self.picture].weight == 0)[:PICTURED, :PICTURED].cpu().numpy()
            file = Path(self.trainer.default_root_dir) / "artifacts" / f"mask_{pattern.name}.npy"
            files.make_folder(file.parent)
            files.write_atomically(file, lambda opened: np.save(opened, corner))
        structure = [column_structure(layer.weight == 0) for layer in layers.values()]
        return {
            f"structure/columns_{pattern.name}": statistics.fmean(structure),
            f"pruned/fraction_{pattern.name}": zero_fraction(layers),
        }

    def _measure_losses(self, pattern: Pattern) -> dict[str, float]:
        settings, measured = self.evaluation, {}
        for split, most in (("val", settings.val_windows), ("test", settings.test_windows)):
            windows = self.data.cut(split, settings.length, most)
            loss = mean_loss(self.decoder, windows, settings.batch_size, self.visited)
            measured[f"{split}/loss_{pattern.name}"] = loss
        # Of a ruined model the exponential may be out of range; perplexity is then "very large".
        measured[f"test/perplexity_{pattern.name}"] = math.exp(min(loss, 700.0))
        return measured
