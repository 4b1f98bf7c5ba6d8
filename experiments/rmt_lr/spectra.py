"""Extreme eigenvalues: of spiked random matrices, and of batch Hessians as a network is trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from repro.experiments.rmt_lr.base import Parts, exponent
from torch import Tensor
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.methods.rmt_lr import (
    HessianNoise,
    batch_top,
    critical_batch,
    effective_batch,
    hessian_noise,
    shifted,
)
from repro.toolbox.linear_algebra.curvature import Curvature, at_rest
from repro.toolbox.linear_algebra.lanczos import Ritz, lanczos
from repro.toolbox.method import Batch
from repro.training.supervised import LOSSES, Supervised


class Spiked(Parts):
    """Top eigenvalues of random symmetric matrices with one spike, against the formula.

    Args:
        dimension: P.
        spikes: the eigenvalues that are added.
        scales: s, half the radius of the semicircle.
        steps: of Lanczos.
        parts: see `Parts`.
    """

    METRICS: ClassVar = {
        "test/error/*": "largest error of the formula in units of s (worst), and that of the spike"
        " itself or 2s without its shift (unshifted)",
        "test/top/*": "top eigenvalue over s, by spike over s and s: x2_s0.5",
    }

    def __init__(
        self,
        dimension: int,
        spikes: Sequence[float],
        scales: Sequence[float],
        steps: int,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.dimension, self.steps = dimension, steps
        self.pairs = list(itertools.product(spikes, scales))

    @override
    def parts(self) -> Sequence[tuple[float, float]]:
        """Pairs of a spike, in units of s, and s."""
        return self.pairs

    @override
    def work(self, part: tuple[float, float]) -> Mapping[str, float]:
        """Draws a matrix, and finds its top eigenvalue."""
        spike, s = part
        P, generator = self.dimension, generator_for(self.seed, self.pairs.index(part))
        G = torch.randn(P, P, generator=generator)
        A = (G + G.mT) * (s / math.sqrt(2 * P))
        A[0, 0] += spike * s  # every direction is as good: the noise is isotropic
        top = lanczos(A.mv, torch.randn(P, generator=generator), self.steps).top
        return {f"x{spike:g}_s{s:g}": float(top) / s}

    @override
    def summary(self) -> Mapping[str, float]:
        """The worst errors, and all eigenvalues."""
        tops = [self.found[f"x{spike:g}_s{s:g}"] for spike, s in self.pairs]
        pairs = list(zip(tops, (spike for spike, _ in self.pairs), strict=True))
        return {
            "test/error/worst": max(abs(top - shifted(spike, 1.0)) for top, spike in pairs),
            "test/error/unshifted": max(abs(top - max(spike, 2.0)) for top, spike in pairs),
            **{f"test/top/{name}": top for name, top in self.found.items()},
        }


class Spectra(Supervised):
    """`Supervised` training that stops now and then to measure the curvature of batches.

    At fixed weights the first ``examples`` training images are all data. For every batch size a
    random partition of them gives batches whose mean fluctuation is exactly zero; Lanczos with one
    start vector finds the extreme eigenvalues of all of them.

    Args:
        *args: see `Supervised`.
        epochs: after how many epochs to measure; 0 is before training.
        kinds: ``hessian``, ``ggn`` or both.
        examples: N.
        sizes: batch sizes, which divide N.
        batches: most batches of a partition that are looked at; null: all.
        stack: most batches side by side; 1 for networks with batch normalisation.
        chunk: examples in one pass over all data; null: all at once, and the graph is kept.
        lanczos_steps: m.
        probes: random directions of the isotropic noise.
        projected: K, top eigenvectors of the predictor by projection.
        shuffle_labels: train on labels in random order, which leaves no structure to learn.
        seed: of partitions, start vectors and probes.
        **kwargs: see `Supervised`.

    Raises:
        UserError: a batch size does not divide N.
    """

    METRICS: ClassVar = {
        f"test/{kind}/{name}": meaning
        for kind in ("hessian", "ggn")
        for name, meaning in {
            "top/*": "largest eigenvalue by epoch (top/e3), of batches (top/e3/b16: mean)",
            "bottom/*": "smallest eigenvalue, likewise",
            "shift/*": "mean shift of the top, without the first-order term",
            "ratio/*": "predicted over measured mean shift by epoch and size (e3/b16)",
            "ratio_isotropic/*": "the same with entries of ε alike: the spiked model's own s",
            "ratio_projected/*": "the same, by eigenvalues of V_Kᵀ H_B V_K",
            "slope/*": "log-log slope of the top's mean shift on 1/b, by epoch",
            "slope_without/*": "the same on 1/B, without the finite-population factor",
            "slope_bottom/*": "log-log slope of the bottom's mean shift on 1/b",
            "noise/*": "b E|ε v|² across the top eigenvector by epoch and size",
            "threshold/*": "B*, the critical batch, by epoch",
        }.items()
    }
    KEPT: ClassVar = ("spectra",)

    def __init__(
        self,
        *args: Any,
        epochs: Sequence[int],
        kinds: Sequence[Any],
        examples: int,
        sizes: Sequence[int],
        lanczos_steps: int,
        probes: int,
        projected: int,
        batches: int | None = None,
        stack: int = 128,
        chunk: int | None = None,
        shuffle_labels: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        odd = [size for size in sizes if examples % size]
        if odd:
            raise UserError(f"rmt_lr: batches of {odd[0]} do not divide {examples} examples.")
        self.epochs, self.kinds, self.examples = list(epochs), list(kinds), examples
        self.sizes, self.batches, self.stack, self.chunk = list(sizes), batches, stack, chunk
        self.lanczos_steps, self.probes, self.projected = lanczos_steps, probes, projected
        self.shuffle_labels, self.seed = shuffle_labels, seed
        self.spectra: dict[str, float] = {}

    @override
    def setup(self, stage: str) -> None:
        """Shuffles the labels, where they are to be."""
        if self.shuffle_labels:
            x, y = self.data.splits["train"]
            order = torch.randperm(len(y), generator=generator_for(self.seed, 1))
            self.data.splits["train"] = (x, y[order])
            self.shuffle_labels = False

    def on_train_start(self) -> None:
        """Measures before the first step."""
        super().on_train_start()
        if self.global_step == 0:
            self._measure(0)

    def on_train_epoch_end(self) -> None:
        """Measures after those epochs that are asked for."""
        super().on_train_epoch_end()
        self._measure(self.current_epoch + 1)

    def on_test_epoch_end(self) -> None:
        """Logs what was measured, too."""
        super().on_test_epoch_end()
        self.log_dict({f"test/{k}": v for k, v in self.spectra.items() if math.isfinite(v)})

    def _measure(self, epoch: int) -> None:
        if epoch not in self.epochs:
            return
        with at_rest(self.model):
            for kind in self.kinds:
                found = self._spectrum(kind, epoch)
                self.spectra = {**self.spectra, **{f"{kind}/{k}": v for k, v in found.items()}}

    def _all_data(self) -> Batch:
        """N training examples, as test images are: without augmentation."""
        x, y = (each[: self.examples].to(self.device) for each in self.data.splits["train"])
        return (x if self.data.normalise is None else self.data.normalise(x)), y

    def _spectrum(self, kind: Any, epoch: int) -> dict[str, float]:
        x, y = self._all_data()
        loss, e = LOSSES[self.task], f"e{epoch}"
        parts = [(x, y)] if self.chunk is None else list(zip(
            x.split(self.chunk), y.split(self.chunk), strict=True))  # fmt: skip
        full = Curvature(self.model, parts, kind, loss, keep=self.chunk is None)
        generator = generator_for(self.seed, epoch)
        start = torch.randn(full.size, generator=generator).to(x)
        probes_KP = torch.randn(self.probes, full.size, generator=generator).to(x)
        ritz = lanczos(full, start, self.lanczos_steps)
        V_KP = ritz.vectors(min(self.projected, ritz.values.shape[-1]))
        order = torch.randperm(len(y), generator=generator).to(y.device)
        found = {f"top/{e}": float(ritz.top), f"bottom/{e}": float(ritz.bottom)}
        inverse, tops, bottoms = [], [], []
        for size in self.sizes:
            b = effective_batch(size, len(y))
            each = _Batches()
            for batch in self._partition(x[order], y[order], size):
                members = len(batch[0])
                theta = full.theta.expand(members, -1)
                curvature = Curvature(self.model, [batch], kind, loss, theta)
                some = lanczos(curvature, start.expand(members, -1), self.lanczos_steps)
                noise = hessian_noise(full, curvature, V_KP[0], probes_KP, members, b)
                each.add(some, noise, _projected(curvature, V_KP, members))
            shift = each.mean("tops") - float(ritz.top) - each.mean("first")
            at = f"{e}/b{size}"
            found |= {
                f"top/{at}": each.mean("tops"),
                f"bottom/{at}": each.mean("bottoms"),
                f"shift/{at}": shift,
                f"noise/{at}": each.mean("across"),
            } | _ratios(each, float(ritz.top), b, shift, at)
            inverse.append(1 / b)
            tops.append(shift)
            bottoms.append(float(ritz.bottom) - each.mean("bottoms"))
        across = sum(found[f"noise/{e}/b{size}"] for size in self.sizes) / len(self.sizes)
        return found | {
            f"threshold/{e}": critical_batch(float(ritz.top), across),
            f"slope/{e}": exponent(inverse, tops),
            f"slope_without/{e}": exponent([1 / size for size in self.sizes], tops),
            f"slope_bottom/{e}": exponent(inverse, bottoms),
        }

    def _partition(self, x: Tensor, y: Tensor, size: int) -> Iterator[Batch]:
        """Batches of one size, (M, size, …), at most ``stack`` at a time."""
        stacked = (x.unflatten(0, (-1, size)), y.unflatten(0, (-1, size)))
        chosen = [each[: self.batches] for each in stacked]
        yield from zip(*(each.split(self.stack) for each in chosen), strict=True)


class _Batches:
    """What is found of the batches of one size, number by number."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, ritz: Ritz, noise: HessianNoise, projected_M: Tensor) -> None:
        """Adds M batches."""
        members = len(projected_M)
        for name, values in {
            "tops": ritz.top,
            "bottoms": ritz.bottom,
            "first": noise.first_order,
            "projected": projected_M,
            "across": torch.tensor([noise.across] * members),
            "isotropic": torch.tensor([noise.isotropic] * members),
        }.items():
            self.values.setdefault(name, []).extend(values.tolist())

    def mean(self, name: str) -> float:
        """Over all batches."""
        return sum(self.values[name]) / len(self.values[name])


def _projected(curvature: Curvature, V_KP: Tensor, members: int) -> Tensor:
    """Top eigenvalues (M,) of V_Kᵀ H_B V_K."""
    columns = [curvature(v.expand(members, -1)) @ V_KP.mT for v in V_KP]
    return torch.linalg.eigvalsh(torch.stack(columns, 2))[:, -1]


def _ratios(each: _Batches, top: float, b: float, shift: float, at: str) -> dict[str, float]:
    """Predicted over measured mean shifts."""
    s = math.sqrt(each.mean("isotropic") / b)
    predicted = {
        "ratio": batch_top(top, each.mean("across"), b) - top,
        "ratio_isotropic": shifted(top, s) - top,
        "ratio_projected": each.mean("projected") - each.mean("first") - top,
    }
    return {f"{name}/{at}": value / shift for name, value in predicted.items()}
