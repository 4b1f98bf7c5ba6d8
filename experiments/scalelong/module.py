"""Noise prediction whose skips are scaled, and what its features and gradients do meanwhile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repro.data.base.iterators import generator_for, process_rank
from repro.errors import UserError
from repro.knobs import Count, Fraction, check_choice, checked
from repro.methods.scalelong import SkipScaling, at_initialisation, sensitivity
from repro.models.diffusion.uvit import UViT
from repro.records.names import ARTIFACTS
from repro.toolbox.diffusion import VPProcess
from repro.toolbox.fid import frechet_inception_distance, require_inception
from repro.toolbox.method import Batch
from repro.toolbox.norms import FeatureNorms, gradient_norm, oscillation
from repro.training.supervised import Supervised

SAMPLERS = ("ddim", "euler_maruyama")
# Keys of the random streams: what is drawn for evaluation never depends on the run.
TRAINING, EVALUATION, PICTURES = 1, 2, 3


class Denoising(Supervised):
    """Trains a network to predict the noise in x_t, on the images of any image data set.

    The times and noises of a training step are a function of (seed, step): arms see the same ones,
    and a resumed run goes on with those it would have seen. What it logs besides losses is measured
    at the test.

    Args:
        *args: see `Supervised`.
        seed: of times and noises.
        time_scale: networks get the time in [0, 1] times this.
        ema: decay of the weights' moving average, which is then evaluated; None: no average.
        eval_draws: times and noises per evaluated image.
        monitor: ``every`` so many steps norms are recorded; ``settle``, share of the records that
            count as warm-up; ``window``, records in the moving average of `oscillation`.
        probes: ``depths`` (numbers of skips), ``networks`` of each depth, ``batch`` of examples.
        sampling: ``pictures`` along each edge of the picture that is drawn at the test, ``method``,
            ``steps``, ``fid_samples``.
        **kwargs: see `Supervised`.

    Raises:
        UserError: an argument lies outside its range.
    """

    METRICS: ClassVar = {
        "monitor/feature_norm": "of the last decoder block's output, mean over the last tenth",
        "monitor/grad_norm": "of the whole gradient, likewise",
        "monitor/feature_oscillation": "`oscillation` after the first steps",
        "monitor/grad_oscillation": "likewise",
        "monitor/sensitivity": "of the trained network to its input",
        "init/n*/gain": "see `at_initialisation`; n<N>: of fresh networks with N skips",
        "init/n*/gain_over_theory": "likewise",
        "init/n*/grad_norm": "likewise",
        "init/n*/grad_ratio": "likewise",
        "init/n*/sensitivity": "likewise",
        "compare/feature_ratio": "the baseline's feature norm over its own",
        "scaler/parameters": "of the scaler",
        "scaler/paper_parameters": "what they would be on U-ViT-S/2",
        "scaler/paper_share": "over those of the network",
        "test/fid": "Frechet Inception distance of samples to training images",
    }

    @checked
    def __init__(
        self,
        *args: Any,
        seed: int,
        time_scale: float,
        ema: Fraction | None,
        eval_draws: Count,
        monitor: dict[str, Any],
        probes: dict[str, Any],
        sampling: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_choice("module", "sampling.method", sampling["method"], SAMPLERS)
        every = monitor["every"]
        if every < 1:
            raise UserError(f"module.monitor.every is a whole number of at least 1, not {every}.")
        self.seed = seed
        self.time_scale = time_scale
        self.eval_draws = eval_draws
        self.monitor = monitor
        self.probes = probes
        self.sampling = sampling
        self.process = VPProcess()
        if isinstance(self.method, SkipScaling):
            # Now, because a checkpoint may hold the scaler's weights.
            self.method.attach(self.model)
        self.average = _moving_average(self.model, ema)
        decoder = getattr(self.model, "decoder", None)
        if decoder is None:
            raise UserError(
                f"{type(self.model).__name__} does not predict noise: choose model=uvit, skip_mlp "
                "or ddpm_unet."
            )
        self.features = FeatureNorms(decoder)
        self.records: list[Tensor] = []  # each (2,): feature norm, gradient norm
        self.baseline: Tensor | None = None  # its records
        self.first_test_batch: Tensor | None = None

    @property
    def denoiser(self) -> nn.Module:
        """The network that is evaluated: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes the baseline's records, to be compared with; the weights are this arm's own."""
        self.baseline = checkpoint["records"]

    def on_train_start(self) -> None:
        """Misses packages now rather than after days of training."""
        super().on_train_start()
        if self.sampling["fid_samples"]:
            require_inception()

    def loss(self, batch: Batch) -> Tensor:
        """The mean squared error of the predicted noise, at random times."""
        x0 = batch[0]
        rank, _ = process_rank()
        time_B, noise = self._draws(x0, TRAINING, self.seed, rank, self.global_step)
        return self._error(self.model, x0, time_B, noise).mean()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update; records norms every so many steps."""
        recorded = self.global_step % self.monitor["every"] == 0
        self.features.active = recorded
        outputs = super().training_step(batch, batch_idx)
        self.features.active = False
        if self.average is not None:
            self.average.update_parameters(self.model)
        if recorded:
            # Gradients are those of the update just made: they are zeroed before the next.
            gradient = gradient_norm(self.model.parameters())
            self.records.append(torch.stack([self.features.latest[-1], gradient]).detach())
        if self.global_step % self.log_every == 0:
            norms = {f"feature/{j}": float(norm) for j, norm in enumerate(self.features.latest)}
            feature, gradient = self.records[-1].tolist()
            latest = {"train/feature_norm": feature, "train/grad_norm": gradient}
            self.log_now(norms | latest)
        return outputs

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keeps the first batch, for what is measured at the end."""
        if batch_idx == 0:
            self.first_test_batch = batch[0]
        super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs everything that is known at the end, and draws pictures."""
        super().on_test_epoch_end()
        self.log_dict(self._monitored() | self._compared() | self._probed() | self._counted())
        self._draw_samples()
        if self.sampling["fid_samples"]:
            self.log("test/fid", self._fid())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the records, for a resumed run and for arms that are compared with this one."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["records"] = torch.stack(self.records) if self.records else torch.empty(0, 2)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the records."""
        super().on_load_checkpoint(checkpoint)
        self.records = list(checkpoint["records"])

    def _draws(self, x0: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        """Times (B,) and noise like ``x0``: a function of the key alone."""
        generator = self._generator(*key)
        time_B = torch.rand(len(x0), generator=generator, device=x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return time_B, noise

    def _generator(self, *key: int) -> torch.Generator:
        """A generator on this device; drawing there spares GPUs the way over the CPU."""
        return torch.Generator(self.device).manual_seed(generator_for(*key).initial_seed() >> 1)

    def _error(self, network: nn.Module, x0: Tensor, time_B: Tensor, noise: Tensor) -> Tensor:
        x_t = self.process.noised(x0, time_B, noise)
        predicted = network(x_t, self.time_scale * time_B)
        return (predicted.float() - noise).square().flatten(1).mean(1)

    def _predict(self, x_t: Tensor, time_B: Tensor) -> Tensor:
        """The evaluated network as a sampler wants it."""
        noise: Tensor = self.denoiser(x_t, self.time_scale * time_B)
        return noise.float()

    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the loss at fixed times and noises."""
        x0 = batch[0].repeat(self.eval_draws, *[1] * (batch[0].ndim - 1))
        time_B, noise = self._draws(x0, EVALUATION, batch_idx)
        error_B = self._error(self.denoiser, x0, time_B, noise)
        self.note({"loss": error_B.mean()}, len(error_B))

    def _monitored(self) -> dict[str, float]:
        """The norms' level and oscillation, and how sensitive the trained network is."""
        measured = {}
        if self.records:
            records_T2 = torch.stack(self.records).cpu()
            settled = records_T2[int(self.monitor["settle"] * len(records_T2)) :]
            for column, name in enumerate(("feature", "grad")):
                measured[f"monitor/{name}_norm"] = _end_level(records_T2[:, column])
                swing = oscillation(settled[:, column], self.monitor["window"])
                if math.isfinite(swing):
                    measured[f"monitor/{name}_oscillation"] = swing
        x, time_B, _ = self._probe_batch()
        measured["monitor/sensitivity"] = sensitivity(
            self.denoiser, x, time_B, self._generator(EVALUATION, 1, 0)
        )
        return measured

    def _compared(self) -> dict[str, float]:
        """This run against the baseline that it starts from."""
        if self.baseline is None or not len(self.baseline) or not self.records:
            return {}
        baseline = _end_level(self.baseline[:, 0].cpu())
        own = _end_level(torch.stack(self.records)[:, 0].cpu())
        return {"compare/feature_ratio": baseline / own}

    def _probed(self) -> dict[str, float]:
        if not self.probes["depths"] or not isinstance(self.method, SkipScaling):
            return {}
        x, time_B, noise = self._probe_batch()
        return at_initialisation(self.model, self.method, x, time_B, noise, self.probes, self.seed)

    def _probe_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noised test examples, their times (as networks take them) and their noise."""
        assert self.first_test_batch is not None
        x0 = self.first_test_batch[: self.probes["batch"]]
        time_B, noise = self._draws(x0, EVALUATION, 0, 1)
        return self.process.noised(x0, time_B, noise), self.time_scale * time_B, noise

    def _counted(self) -> dict[str, float]:
        """The scaler's parameters: of this network, and what they would be on U-ViT-S/2."""
        if not isinstance(self.method, SkipScaling):
            return {}
        with torch.device("meta"):
            paper = UViT([3, 32, 32])
            backbone = _size(paper)
            self.method.attach(paper)
        scaler = getattr(self.model, "scaler", None)
        return {
            "scaler/parameters": 0 if scaler is None else _size(scaler),
            "scaler/paper_parameters": _size(paper) - backbone,
            "scaler/paper_share": (_size(paper) - backbone) / backbone,
        }

    def _sample(self, count: int, number: int) -> Tensor:
        """``count`` samples; ``number`` decides their noise."""
        real = self.first_test_batch
        assert real is not None
        shape = (count, *real.shape[1:])
        generator = self._generator(PICTURES, self.seed, number)
        steps = self.sampling["steps"]
        if self.sampling["method"] == "euler_maruyama":
            return self.process.euler_maruyama(self._predict, shape, steps, generator, to_zero=True)
        limits = float(real.min()), float(real.max())
        return self.process.ddim(self._predict, shape, steps, generator, limits=limits)

    def _draw_samples(self) -> None:
        """Keeps a square of images for the figures: real ones above, sampled ones below."""
        edge, real = self.sampling["pictures"], self.first_test_batch
        assert real is not None
        is_image = real.ndim == 4
        if not edge or not is_image or not self.trainer.is_global_zero:
            return
        real = real[: edge * (edge // 2)]
        images = torch.cat([real, self._sample(edge**2 - len(real), 0)])
        images = ((images - real.min()) / (real.max() - real.min())).clamp(0, 1)
        rows_EHEWC = images.unflatten(0, (edge, edge)).permute(0, 3, 1, 4, 2)
        square = rows_EHEWC.flatten(2, 3).flatten(0, 1).squeeze(-1)
        folder = Path(self.trainer.default_root_dir) / ARTIFACTS
        folder.mkdir(exist_ok=True)
        np.save(folder / "samples.npy", square.cpu().numpy())

    def _fid(self) -> float:
        """FID of fresh samples against the training images."""
        total, size = self.sampling["fid_samples"], 500
        fakes = (
            self._sample(min(size, total - start), 1 + start // size)
            for start in range(0, total, size)
        )
        reals = (batch[0].to(self.device) for batch in self.data.train_dataloader())
        return frechet_inception_distance(reals, fakes, self.device)


def _moving_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return average.requires_grad_(False)  # data-parallel training waits for gradients otherwise


def _end_level(series_T: Tensor) -> float:
    """The mean of a series' last tenth."""
    return float(series_T[-max(1, len(series_T) // 10) :].mean())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
