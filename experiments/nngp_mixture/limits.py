"""Ensembles of finite networks against the law that they should have in the limit."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from repro.experiments.nngp_mixture.base import Room
from scipy import stats
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, checked
from repro.methods.nngp_mixture import (
    InverseGamma,
    LastLayerDescent,
    NNGPKernel,
    StudentPredictive,
    WideNetworks,
    draw_features,
    mixture_limit,
    trained_limit,
)


class Ensemble(Room):
    """Draws networks of the prior, trains them, and compares their outputs with theory.

    Args:
        kernel: of the architecture.
        prior: of σ_v².
        width: of every hidden layer.
        networks: how many.
        train: ``last`` layer (in function space) or ``all`` layers (on the weights).
        rate: of gradient descent, in units of the inverse of the largest curvature.
        steps: of descent in one training step; 1 where all layers are trained.
        room: see `Room`.
    """

    METRICS: ClassVar = {  # Kolmogorov-Smirnov distances, averaged over the test inputs
        "test/*/ks": "to Student's t of the paper; *: prior, last or all trained layers",
        "test/*/ks_gaussian": "to the Gaussian of the same variance",
        "test/*/ks_posterior": "to the t of the Bayesian posterior, of other degrees of freedom",
        "test/*/mse": "mean squared error of the networks on the training set",
        "test/ks_noise": "what the distance of so many true draws stays below, at 95 %",
    }

    @checked
    def __init__(
        self,
        kernel: NNGPKernel,
        prior: InverseGamma,
        width: Count,
        networks: Count,
        train: Literal["last", "all"] = "last",
        rate: float = 1.0,
        steps: Count = 1,
        **room: Any,
    ) -> None:
        super().__init__(**room)
        self.kernel, self.prior = kernel.requires_grad_(False), prior
        self.width, self.count, self.train_which = width, networks, train
        self.rate, self.steps = rate, steps
        self.networks: WideNetworks | None = None
        self.descent: LastLayerDescent | None = None
        self.start: dict[str, float] = {}
        self.y: Tensor
        self.points: Tensor

    @override
    def setup(self, stage: str) -> None:
        """Draws the networks, and measures them as they are born."""
        if self.networks is not None or self.descent is not None:
            return
        ((x, y),) = self.whole("train").values()
        ((x_star, _),) = self.whole("test").values()
        self.register_buffer("y", y[:, 0], persistent=False)
        self.register_buffer("points", torch.cat([x, x_star]), persistent=False)
        K, theta = self.kernel.tangent(self.points)
        generator = generator_for(self.seed)
        if self.train_which == "all":
            self.networks = WideNetworks(
                self.kernel, x.shape[1], self.width, self.count, self.prior, generator
            )
            largest = torch.linalg.eigvalsh(theta[: len(y), : len(y)])[-1]
            self.step_size = self.rate / float(largest)
            limit = trained_limit(K, self.y, theta)
        else:
            phi = draw_features(self.points, self.kernel, self.width, self.count, generator)
            scale = self.prior.sample((self.count,), generator)
            self.descent = LastLayerDescent(phi, self.y, scale, self.rate, generator)
            limit = trained_limit(K, self.y)
        self.limit = (limit[0], limit[1].diagonal())
        born = (torch.zeros(len(x_star), dtype=K.dtype), K.diagonal()[len(y) :])
        self.start = self._distances("test/prior", *born)

    def outputs(self) -> Tensor:
        """The networks' outputs (R, N + M) at the training inputs, then the test inputs."""
        if self.descent is not None:
            return self.descent.outputs
        assert self.networks is not None
        with torch.no_grad():
            outputs: Tensor = self.networks(self.points)
        return outputs

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One step of gradient descent on all weights, or several on the last layers."""
        if self.descent is not None:  # small enough for the CPU, wherever training happens
            loss = self.descent.step(self.steps)
            self.tick()
        else:
            assert self.networks is not None
            error = self.networks(self.points[: len(self.y)]) - self.y
            # Each network at the rate η / σ², which changes how fast it learns, not what.
            scaled = self.step_size * 0.5 * (error.square().sum(1) / self.networks.scale).sum()
            self.descend(scaled)
            loss = error.detach().square().mean()
        self.log("train/loss", loss, batch_size=1)
        return {"loss": loss}

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the distances at birth and at the end."""
        trained = "test/last" if self.train_which == "last" else "test/all"
        mean, variance = self.limit
        self.log_dict(
            {**self.start, **self._distances(trained, mean, variance)}
            | {
                f"{trained}/mse": float(
                    (self.outputs().cpu()[:, : len(self.y)] - self.y.cpu()).square().mean()
                )
            }
            | {"test/ks_noise": 1.36 / math.sqrt(self.count)},
            batch_size=1,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is not a parameter: outputs in function space, measures at birth."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ensemble"] = {"outputs": self.outputs(), "start": self.start}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        super().on_load_checkpoint(checkpoint)
        if self.descent is not None:
            self.descent.outputs = checkpoint["ensemble"]["outputs"]
        self.start = checkpoint["ensemble"]["start"]

    def _distances(self, name: str, mean: Tensor, variance: Tensor) -> dict[str, float]:
        """Distances between the outputs at the test inputs and the predicted laws."""
        N, y = len(self.y), self.y.cpu()
        student = mixture_limit(mean, variance, self.prior)
        laws = {"ks": student}
        if self.prior.alpha > 1:  # else there is no variance to match
            matched = (self.prior.beta / (self.prior.alpha - 1) * variance).sqrt()
            laws["ks_gaussian"] = StudentPredictive(mean, matched)
        if name != "test/prior":
            inverse_y = torch.linalg.solve(self.kernel(self.points[:N]), self.y).cpu()
            q = float(y @ inverse_y)
            more = InverseGamma(self.prior.alpha + N / 2, self.prior.beta + q / 2)
            laws["ks_posterior"] = mixture_limit(mean, variance, more)
        outputs = self.outputs()[:, N:].cpu()
        return {f"{name}/{law_name}": _ks(law.cdf(outputs)) for law_name, law in laws.items()}


def _ks(probabilities: Tensor) -> float:
    """Mean over columns of the distance of (R, M) probabilities from the uniform law."""
    columns = probabilities.cpu().numpy().T
    return float(sum(stats.kstest(column, "uniform").statistic for column in columns)) / len(
        columns
    )
