"""Restoration of clips, with an adversary that names the weather, and probes that ask for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.images.weather import WEATHERS
from repro.knobs import Count, Natural, NonNegative, checked
from repro.methods.viws_net import (
    Restored,
    adversary_labels,
    restoration_loss,
    restore_tiled,
    weather_loss,
)
from repro.records import files
from repro.toolbox.animations import save_animation
from repro.toolbox.gradient_reversal import dann_strength
from repro.toolbox.image_quality import luma, psnr, ssim, to_8_bit
from repro.toolbox.method import Batch
from repro.toolbox.probes import probe_accuracy
from repro.training.procedure import Number
from repro.training.supervised import Supervised


class Restoration(Supervised):
    """Trains a network of clips (`repro.methods.viws_net.Restored`), on centre frames.

    Args:
        *args: see `Supervised`.
        adversary: what the discriminator is for: ``none``; ``reversed``, the method; ``shuffled``,
            the same with labels of other clips; ``cooperative``, without reversal.
        adversary_weight: of its cross-entropy.
        perceptual: a loss of two pictures, or None.
        perceptual_weight: of it.
        trained_on: the weathers whose clips are trained on; all are tested.
        tile: edge of tiles that frames are cut into, where they are larger.
        overlap: of tiles.
        multiple: of what the sides of frames have to be.
        probe_items: items of clips that probes are fitted on, and as many that they are asked for;
            0: no probes.
        probe_hidden: hidden units of the second probe.
        preview_frames: length of the animated preview; 0: none.
        seed: of shuffled labels and probes.
        **kwargs: see `Supervised`.
    """

    METRICS: ClassVar = {
        "val/psnr": "dB, mean over weathers of val/psnr/*",
        "val/psnr/*": "dB, of 8-bit RGB frames, mean over frames",
        "val/psnr_y/*": "dB, of 8-bit luma",
        "val/ssim_y/*": "structural similarity of 8-bit luma",
        "val/train_restoration": "smooth L1 of the epoch's training clips, without other terms",
        "test/psnr": "dB, mean over weathers",
        "test/psnr/*": "dB, of 8-bit RGB frames, mean over frames; also by photograph",
        "test/psnr_y/*": "dB, of 8-bit luma",
        "test/ssim_y/*": "structural similarity of 8-bit luma",
        "test/probe/*_accuracy": "accuracy of a fresh logistic regression that names the weather "
        "from pooled features (pixels or tokens), on held-out scenes",
        "test/probe/*_mlp_accuracy": "likewise, of a network with a hidden layer",
        "test/probe/gap": "accuracy from tokens minus accuracy from pixels",
        "model/parameters": "of the network",
        "train/adversary": "cross-entropy of the discriminator, mean of the epoch",
    }
    KEPT: ClassVar = ("sums",)

    @checked
    def __init__(
        self,
        *args: Any,
        adversary: Literal["none", "reversed", "shuffled", "cooperative"],
        adversary_weight: NonNegative,
        perceptual: nn.Module | None,
        perceptual_weight: NonNegative,
        trained_on: Sequence[Literal["rain", "haze", "snow"]],
        tile: Count,
        overlap: Natural,
        multiple: Count,
        probe_items: Natural,
        probe_hidden: Count,
        preview_frames: Natural,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.adversary, self.adversary_weight = adversary, adversary_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.trained_on = [WEATHERS.index(each) for each in trained_on]
        self.tiling = {"tile": tile, "overlap": overlap, "multiple": multiple}
        self.probe_items, self.probe_hidden = probe_items, probe_hidden
        self.preview_frames, self.seed = preview_frames, seed
        self.is_learned = any(True for _ in self.model.parameters())
        self.total_steps = 1
        self.sums: dict[str, tuple[Tensor | float, int]] = {}  # of losses, over the epoch so far

    # -- Training ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Nothing, where nothing is learned."""
        return super().configure_optimizers() if self.is_learned else None

    def on_train_start(self) -> None:
        """Counts the steps that the adversary's strength rises over."""
        super().on_train_start()
        self.total_steps = int(self.trainer.estimated_stepping_batches)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update, or a look at what cannot be updated."""
        if self.is_learned:
            return super().training_step(batch, batch_idx)
        return {"loss": torch.zeros((), device=self.device)}

    def loss(self, batch: Batch) -> Tensor:
        """Restoration, perceptual and adversarial loss of the clips that are trained on."""
        x, clean, weather = self._of_trained_weathers(batch)
        restored: Restored = self.model(x)
        loss = restoration_loss(restored.centre, clean)
        self._add("restoration", loss)
        if self.perceptual is not None:
            loss = loss + self.perceptual_weight * self.perceptual(restored.centre, clean)
        if self.adversary != "none" and restored.pixels is not None:
            labels = adversary_labels(
                weather, self.adversary, generator_for(self.seed, self.global_step)
            )
            named = weather_loss(
                self.model.discriminator,  # type: ignore[arg-type]
                restored.pixels,
                labels,
                self.strength(),
            )
            self._add("adversary", named)
            loss = loss + self.adversary_weight * named
        return loss

    def strength(self) -> float:
        """Of the reversal at this step, counted from one; negative where they cooperate."""
        strength = dann_strength((self.global_step + 1) / self.total_steps)
        return -strength if self.adversary == "cooperative" else strength

    def _of_trained_weathers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        x, clean, weather = batch[:3]
        if len(self.trained_on) == len(WEATHERS):
            return x, clean, weather
        chosen = torch.isin(weather, torch.tensor(self.trained_on, device=weather.device))
        return x[chosen], clean[chosen], weather[chosen]

    def _add(self, name: str, loss: Tensor) -> None:
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + loss.detach(), count + 1)

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's losses."""
        super().on_train_epoch_end()
        if "adversary" in self.sums:
            total, count = self.sums["adversary"]
            self.log("train/adversary", total / count)
        self.sums = {}

    # -- Measuring --------------------------------------------------------------------------------

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes quality by weather, and by photograph where the batch says which it is."""
        x, clean, weather, *scenes = batch
        centre = restore_tiled(self.model, x, **self.tiling)
        self.note({"loss": restoration_loss(centre, clean)}, len(x))
        ours, theirs = to_8_bit(centre), to_8_bit(clean)
        y, y_clean = luma(ours), luma(theirs)
        measures = {
            "psnr": psnr(ours, theirs), "psnr_y": psnr(y, y_clean), "ssim_y": ssim(y, y_clean)
        }  # fmt: skip
        for number, name in enumerate(WEATHERS):
            chosen = weather == number
            if not chosen.any():
                continue
            self.note({f"{key}/{name}": value[chosen] for key, value in measures.items()})
            for scene in scenes[0][chosen].unique() if scenes and self.split == "test" else ():
                of_scene = measures["psnr"][chosen & (scenes[0] == scene)]
                self.note({f"psnr/{name}/photograph_{int(scene)}": of_scene})

    @override
    def measured(self) -> dict[str, Tensor]:
        """The means, and the mean over weathers, which differ in their number of frames."""
        measured = super().measured()
        found = [measured[f"psnr/{name}"] for name in WEATHERS if f"psnr/{name}" in measured]
        return measured | {"psnr": torch.stack(found).mean()}

    @override
    def log_measured(self) -> Mapping[str, Number]:
        """Also logs the training clips' restoration loss, for sets without a validation part."""
        if self.split == "val" and "restoration" in self.sums:
            total, count = self.sums["restoration"]
            self.log("val/train_restoration", total / count)
        return super().log_measured()

    def on_test_epoch_end(self) -> None:
        """Logs quality, size and what probes find, and keeps pictures."""
        super().on_test_epoch_end()
        found = {"model/parameters": float(sum(p.numel() for p in self.model.parameters()))}
        if self.probe_items:
            found |= self.probes()
        self.log_dict(found)
        if self.preview_frames:
            save_preview(self.model, self.data.preview(self.preview_frames), self._folder())

    def _folder(self) -> Path:
        folder = Path(self.trainer.default_root_dir) / "artifacts"
        files.make_folder(folder)
        return folder

    def probes(self) -> dict[str, float]:
        """Accuracies of probes that are fitted on training scenes and asked for test scenes."""
        known, asked = (self.features(split) for split in ("train", "test"))
        found = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for kind in known.keys() - {"weather"}:
                fitted, tested = ((each[kind], each["weather"]) for each in (known, asked))
                found[f"test/probe/{kind}_accuracy"] = probe_accuracy(fitted, tested)
                found[f"test/probe/{kind}_mlp_accuracy"] = probe_accuracy(
                    fitted, tested, self.probe_hidden, self.seed
                )
        if "tokens" in known:
            pixels, tokens = (found[f"test/probe/{kind}_accuracy"] for kind in ("pixels", "tokens"))
            found["test/probe/gap"] = tokens - pixels
        return found

    @torch.no_grad()
    def features(self, split: str) -> dict[str, Tensor]:
        """``pixels`` and ``tokens`` (N, C), meant over frames, and ``weather`` (N,).

        What the network does not have is left out.
        """
        rows: dict[str, list[Tensor]] = {}
        for x, _, weather, *_ in self._probe_batches(split):
            restored: Restored = self.model(x.to(self.device))
            for name in ("pixels", "tokens"):
                part = getattr(restored, name)
                if part is not None:
                    rows.setdefault(name, []).append(part.mean(1).cpu())
            rows.setdefault("weather", []).append(weather)
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def _probe_batches(self, split: str) -> Iterator[Batch]:
        left = self.probe_items
        for batch in self.data.probe_dataloader(split):
            clips = min(len(batch[0]), left * len(WEATHERS))
            yield tuple(part[:clips] for part in batch)
            left -= clips // len(WEATHERS)
            if left == 0:
                return


@torch.no_grad()
def save_preview(model: nn.Module, clips: tuple[Tensor, int], folder: Path) -> None:
    """Writes ``preview.gif``, and its middle as ``preview.npy``: a row for each weather.

    Each row shows a frame as it came, and beside it what the network makes of the clip around it.

    Args:
        model: maps clips to `Restored`.
        clips: longer ones (B, F, 3, H, W), and how many frames of them the network takes.
        folder: for both files.
    """
    videos, T = clips
    device = next(iter(model.parameters()), torch.empty(0)).device
    shown = []
    for start in range(videos.shape[1] - T + 1):
        window = videos[:, start : start + T].to(device)
        pair = torch.cat([window[:, T // 2], model(window).centre], -1)
        rows = to_8_bit(pair).to(torch.uint8).permute(0, 2, 3, 1).flatten(0, 1)
        shown.append(rows.cpu().numpy())
    np.save(folder / "preview.npy", shown[len(shown) // 2])
    save_animation(shown, folder / "preview.gif", enlarged=3)
