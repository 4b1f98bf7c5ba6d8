"""Adversarial training of a generator of coverage maps, and how well it does by group of maps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Natural, NonNegative, checked
from repro.methods.radiance import MapLoss, Slopes, adversarial_loss, judged
from repro.records import files
from repro.toolbox.image_quality import ms_ssim
from repro.toolbox.method import Batch, OptimizerFactory
from repro.training.supervised import Supervised

YARDSTICK = Slopes()  # for all arms, whatever they are trained with
WON = 0.99  # accuracy from which on a discriminator teaches nothing


class Coverage(Supervised):
    """`Supervised` of a generator, beside a discriminator that is trained on the same maps.

    Args:
        *args: see `Supervised`; ``model`` is the generator.
        discriminator: maps planes and a map to logits.
        discriminator_optimizer: called with its parameters; its rate follows the schedule.
        adversarial: weight of the adversarial loss; 0: no discriminator.
        weights: of the other terms, see `repro.methods.radiance.MapLoss`.
        slopes: how slopes are compared.
        shuffled: see `MapLoss`.
        flip: mirrors training rooms, beams and maps together, half of them.
        predictor: what is measured: the ``generator``, the ``mean_map`` of training, or
            ``free_space``, the formula without walls.
        preview_maps: of the first test group, to be kept as a picture beside their targets.
        **kwargs: see `Supervised`.
    """

    METRICS: ClassVar = {
        "val/mae": "mean absolute error of validation maps, in [0, 1]",
        "val/ms_ssim": "their multi-scale structural similarity, in [0, 1]",
        "test/mae/*": "by group of test maps, mean over maps; power in units of the whole range",
        "test/blocked_mae/*": "on the pixels that the antenna does not see",
        "test/rmse/*": "mean over maps of each one's root mean squared error",
        "test/psnr/*": "mean over maps of each one's ratio, dB",
        "test/psnr_of_mean/*": "the ratio of the mean squared error over maps, dB",
        "test/ms_ssim/*": "multi-scale structural similarity, in [0, 1]",
        "test/magnitude/*": "error of the slopes' magnitudes; a training loss of some arms",
        "test/direction/*": "error of the slopes' directions; likewise",
        "test/blocked_share": "share of pixels of the first group that the antenna does not see",
        "test/clipped_share": "share of its pixels whose power is out of range",
        "test/discriminator_accuracy": "share of patches of fresh maps that are told right",
        "data/walls": "walls inside of a training room, on average",
        "model/parameters": "of the generator",
        "train/discriminator_accuracy": "share of patches told right, mean of the epoch's steps",
        "train/discriminator_won": "longest row of updates so far with at least 99 % told right",
    }
    KEPT: ClassVar = ("told", "won")

    @checked
    def __init__(
        self,
        *args: Any,
        discriminator: nn.Module,
        discriminator_optimizer: OptimizerFactory,
        adversarial: NonNegative,
        weights: Mapping[str, float],
        slopes: Mapping[str, Any],
        shuffled: bool,
        flip: bool,
        predictor: Literal["generator", "mean_map", "free_space"],
        preview_maps: Natural,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.discriminator, self.adversarial = discriminator, adversarial
        self.map_loss = MapLoss(weights, Slopes(**slopes), shuffled)
        self.flip, self.predictor, self.preview_maps = flip, predictor, preview_maps
        self.make_optimizer = partial(discriminator_optimizer, discriminator.parameters())
        self.adversary: torch.optim.Optimizer | None = None
        self.adversary_state: dict[str, Any] | None = None
        self.told: tuple[Tensor | float, int] = (0.0, 0)  # accuracies of the epoch, and how many
        self.won: tuple[int, int] = (0, 0)  # the row of updates that it won, and the longest

    # -- Training ---------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Gives the discriminator its optimizer, which learns on whole batches of one device.

        Raises:
            UserError: there are several devices, or parts of batches.
        """
        super().on_train_start()
        if self.adversarial and (self.trainer.world_size > 1 or self.parts > 1):
            raise UserError(
                "The discriminator learns on whole batches of one device: choose hardware=gpu or "
                "cpu, and hardware.accumulate=1."
            )
        self.adversary = self.make_optimizer()
        if self.adversary_state is not None:
            self.adversary.load_state_dict(self.adversary_state)
            self.adversary_state = None

    @override
    def loss(self, batch: Batch) -> Tensor:
        """The generator's; the discriminator is trained first, on the same generated maps.

        Raises:
            UserError: there is no other map in the batch, and slopes are to be another map's.
        """
        x, y = self._mirrored(*batch)
        if self.map_loss.shuffled and len(y) < 2:
            raise UserError("module.shuffled compares maps of a batch: choose a larger batch.")
        fake = self.model(x)
        loss = self.map_loss(fake, y, self._transmitter(x))
        if self.adversarial:
            self._train_discriminator(x, y, fake)
            loss = loss + self.adversarial * adversarial_loss(self.discriminator, x, fake)
        return loss

    def _train_discriminator(self, x: Tensor, y: Tensor, fake: Tensor) -> None:
        optimizer = self.adversary
        assert optimizer is not None
        judgement = judged(self.discriminator, x, y, fake)
        right = judgement.accuracy().detach()
        (group,) = self.trainer.optimizers[0].param_groups[:1]
        start = group.get("initial_lr", group["lr"])
        for own in optimizer.param_groups:
            rate = own.setdefault("initial_lr", own["lr"])
            own["lr"] = rate * group["lr"] / start if start else 0.0
        optimizer.zero_grad()
        self._backward(judgement.loss())
        optimizer.step()
        self.told = (self.told[0] + right, self.told[1] + 1)
        row = self.won[0] + 1 if right >= WON else 0
        self.won = (row, max(row, self.won[1]))

    def _mirrored(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self.flip:
            return x, y
        turned = (torch.rand(len(x), 1, 1, 1) < 0.5).to(x.device)
        return torch.where(turned, x.flip(3), x), torch.where(turned, y.flip(3), y)

    def _transmitter(self, x: Tensor) -> Tensor:
        number = self.data.planes.index("transmitter")
        return x[:, number : number + 1]

    def on_train_epoch_end(self) -> None:
        """Logs what the discriminator told apart."""
        super().on_train_epoch_end()
        total, count = self.told
        if count:
            self.log("train/discriminator_accuracy", total / count)
            self.log("train/discriminator_won", float(self.won[1]))
        self.told = (0.0, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the discriminator's optimizer."""
        super().on_save_checkpoint(checkpoint)
        state = None if self.adversary is None else self.adversary.state_dict()
        checkpoint["adversary"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps its state until training starts."""
        super().on_load_checkpoint(checkpoint)
        self.adversary_state = checkpoint["adversary"]

    # -- Measuring --------------------------------------------------------------------------------

    def predict(self, x: Tensor, free: Tensor, shift: Tensor) -> Tensor:
        """Maps (B, 1, S, S) in [0, 1]; the shift is for a frequency that x does not tell."""
        if self.predictor == "free_space":
            return free
        if self.predictor == "mean_map":
            mean: Tensor = self.data.labels("train").mean(0)
            return mean.to(x.device).expand(len(x), -1, -1, -1)
        fake: Tensor = self.model(x)
        return (fake + shift.view(-1, 1, 1, 1)).clamp(0, 1)

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the errors of each map, by group."""
        x, y, free, hidden, shift, group = batch
        fake = self.predict(x, free, shift)
        if self.split == "val":
            found = {"mae": (fake - y).abs().flatten(1).mean(1), "ms_ssim": ms_ssim(fake, y)}
            self.note({**found, "loss": found["mae"]})
            return
        for number, name in enumerate(self.data.groups):
            chosen = group == number
            if chosen.any():
                errors = self._errors(*(each[chosen] for each in (y, hidden, fake)))
                self.note({f"{key}/{name}": value for key, value in errors.items()})
        first = group == 0
        if first.any():
            self.note({"blocked_share": hidden[first].float()})
            self.note({"clipped_share": ((y == 0) | (y == 1))[first].float()})
            if self.adversarial and self.predictor == "generator":
                told = judged(self.discriminator, x[first], y[first], fake[first])
                self.note({"discriminator_accuracy": told.accuracy()}, int(first.sum()))

    def _errors(self, y: Tensor, hidden: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """One number for each map."""
        absolute, square = ((fake - y).abs().flatten(1), (fake - y).square().flatten(1).mean(1))
        slopes = [YARDSTICK(*pair) for pair in zip(fake.split(1), y.split(1), strict=True)]
        return {
            "mae": absolute.mean(1),
            # No number where the antenna sees everything: such maps do not count.
            "blocked_mae": (absolute * hidden.flatten(1)).sum(1) / hidden.flatten(1).sum(1),
            "rmse": square.sqrt(),
            "psnr": -10 * square.log10(),
            "mse": square,
            "ms_ssim": ms_ssim(fake, y),
            "magnitude": torch.stack([each.magnitude for each in slopes]),
            "direction": torch.stack([each.direction for each in slopes]),
        }

    @override
    def measured(self) -> dict[str, Tensor]:
        """The means; of squared errors their logarithm."""
        measured = super().measured()
        mse = {name: value for name, value in measured.items() if name.startswith("mse/")}
        for name, value in mse.items():
            del measured[name]
            measured[f"psnr_of_mean/{name.removeprefix('mse/')}"] = -10 * value.log10()
        return measured

    def on_test_epoch_end(self) -> None:
        """Logs the errors and what the data are like, and keeps pictures."""
        super().on_test_epoch_end()
        self.log("data/walls", self.data.walls_inside)
        self.log("model/parameters", float(sum(p.numel() for p in self.model.parameters())))
        if self.preview_maps:
            self._keep_preview(Path(self.trainer.default_root_dir) / "artifacts")

    def _keep_preview(self, folder: Path) -> None:
        """``preview.npy``: a row for each map, its target and then the prediction, in bytes."""
        x, y, free, _, shift, _ = next(iter(self.data.test_dataloader()))
        some = [each[: self.preview_maps].to(self.device) for each in (x, free, shift)]
        with torch.no_grad():
            pairs = torch.cat([y[: self.preview_maps].to(self.device), self.predict(*some)], 3)
        files.make_folder(folder)
        rows = (255 * pairs).round().to(torch.uint8).flatten(0, 2)
        np.save(folder / "preview.npy", rows.cpu().numpy())
