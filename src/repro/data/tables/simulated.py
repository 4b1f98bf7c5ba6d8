"""Simulated data sets: as large as you like, reproducible from ``data_seed``, no download."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge

from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Splits, TensorData
from repro.errors import UserError
from repro.internals import standard_gamma
from repro.knobs import Count, NonNegative, Positive, Probability, checked


@checked
def gaussian_mixture(
    name: str,
    *,
    input_shape: Sequence[int],
    classes: Annotated[int, Ge(2)],
    train_size: Count,
    val_size: Count,
    test_size: Count,
    separation: float = 2.0,
    label_noise: Probability = 0.0,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Classes that are Gaussian blobs: x = mean of the class + standard normal noise.

    Class means are drawn from N(0, separation² I / D), so that their expected distance does not
    grow with the dimension D. Classes take turns, so every split is balanced.

    Args:
        name: of the data set.
        input_shape: of one input.
        classes: number of blobs.
        train_size: examples of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        separation: typical distance of a class mean from the origin, in units of the noise.
        label_noise: share of the training labels that are drawn anew, uniformly over classes.
        data_seed: decides the means and the sample.
        facts: see `TensorData`.
    """

    def load() -> Splits:
        generator = generator_for(data_seed)
        D = math.prod(input_shape)
        mean_KD = separation * torch.randn(classes, D, generator=generator) / math.sqrt(D)
        splits = {}
        for split, size in zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True):
            y_N = torch.arange(size) % classes
            x_ND = mean_KD[y_N] + torch.randn(size, D, generator=generator)
            if split == "train":
                redrawn_N = torch.rand(size, generator=generator) < label_noise
                random_N = torch.randint(classes, (size,), generator=generator)
                y_N = torch.where(redrawn_N, random_N, y_N)
            splits[split] = (x_ND.view(size, *input_shape), y_N)
        return splits

    return TensorData(name, load, input_shape=input_shape, classes=classes, **facts)


@checked
def linear_regression(
    name: str,
    *,
    input_shape: Sequence[int],
    targets: Count,
    train_size: Count,
    val_size: Count,
    test_size: Count,
    noise: NonNegative = 0.1,
    condition: Annotated[float, Ge(1)] = 1.0,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Targets that are linear in the features: y = x W + noise.

    Features are independent and Gaussian with variances spaced evenly on a logarithmic scale from 1
    down to ``1 / condition``; W has independent entries N(0, 1 / D).

    Args:
        name: of the data set.
        input_shape: of one input.
        targets: columns of y.
        train_size: examples of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        noise: standard deviation of what is added to y.
        condition: condition number of the features' covariance, at least 1.
        data_seed: decides W and the sample.
        facts: see `TensorData`.
    """

    def load() -> Splits:
        generator = generator_for(data_seed)
        D = math.prod(input_shape)
        W_DK = torch.randn(D, targets, generator=generator) / math.sqrt(D)
        deviation_D = torch.logspace(0, -math.log10(condition) / 2, D)
        splits = {}
        for split, size in zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True):
            x_ND = torch.randn(size, D, generator=generator) * deviation_D
            y_NK = x_ND @ W_DK + noise * torch.randn(size, targets, generator=generator)
            splits[split] = (x_ND.view(size, *input_shape), y_NK)
        return splits

    return TensorData(name, load, input_shape=input_shape, targets=targets, **facts)


class PlantedDictionary(TensorData):
    """Sparse sums of known directions, of which few decide the label: a test of feature learning.

    x = Σ_i s_i d_i + noise, with random unit vectors d_i in D dimensions, more of them than D, and
    sparse codes s_i ≥ 0. Most features are *inert*: often on and large. A few are *influential*:
    small, and the label is the class with the largest random linear score (weights N(0, 4)) of
    their codes alone. A method that only looks at how much of x a feature makes up overlooks them.

    Args:
        name: of the data set.
        input_shape: (D,).
        classes: number of labels.
        inert: number of inert features.
        influential: number of influential ones.
        inert_active: inert features that are on in an example, on average.
        influential_active: influential ones, likewise.
        influential_size: their magnitude, in units of that of the inert ones.
        noise: standard deviation of what is added to each coordinate.
        train_size: examples of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        data_seed: decides the features, the labels' weights and the sample.
        facts: see `TensorData`.

    Raises:
        UserError: a size below 1, or more features on than there are.
    """

    @checked
    def __init__(
        self,
        name: str,
        *,
        input_shape: Sequence[int],
        classes: int,
        inert: Count,
        influential: Count,
        inert_active: float,
        influential_active: float,
        influential_size: float,
        noise: float,
        train_size: Count,
        val_size: Count,
        test_size: Count,
        data_seed: int = 0,
        **facts: Any,
    ):
        for kind, on, count in (
            ("inert", inert_active, inert),
            ("influential", influential_active, influential),
        ):
            if not 0 < on <= count:
                raise UserError(
                    f"Data set '{name}': {kind}_active={on}. Choose more than 0, at most {count}."
                )
        generator = generator_for(data_seed)
        D, F = math.prod(input_shape), inert + influential
        directions_FD = torch.randn(F, D, generator=generator)
        # (F, D) unit vectors, the influential ones last; `is_influential` says which.
        self.features = directions_FD / directions_FD.norm(dim=1, keepdim=True)
        self.is_influential = torch.arange(F) >= inert
        weight_KF = 2 * torch.randn(classes, influential, generator=generator)
        rates = (influential_active / influential, inert_active / inert)
        rate_F = torch.where(self.is_influential, *rates)
        size_F = torch.where(self.is_influential, influential_size, 1.0)

        def split(size: int) -> tuple[torch.Tensor, torch.Tensor]:
            on_NF = torch.rand(size, F, generator=generator) < rate_F
            code_NF = on_NF * size_F * (0.5 + torch.rand(size, F, generator=generator))
            x_ND = code_NF @ self.features + noise * torch.randn(size, D, generator=generator)
            y_N = (code_NF[:, inert:] @ weight_KF.T).argmax(dim=1)
            return x_ND.view(size, *input_shape), y_N

        sizes = zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True)
        super().__init__(
            name,
            lambda: {name: split(size) for name, size in sizes},
            input_shape=input_shape,
            classes=classes,
            **facts,
        )


@checked
def sine(
    name: str,
    *,
    train_size: Annotated[int, Ge(2)],
    val_size: Count,
    test_size: Count,
    half_width: Positive = math.pi,
    noise: NonNegative = 0.1,
    df: Positive | None = None,
    standardise: bool = False,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """A sine seen through noise: y = sin(x) + noise, x in [−half_width, half_width].

    Training inputs are evenly spaced and include both ends; those of the other splits are the
    middles of as many equal cells, so that none is a training input.

    Args:
        name: of the data set.
        train_size: examples of the training split, at least 2.
        val_size: of the validation split.
        test_size: of the test split.
        half_width: the largest input.
        noise: scale of what is added to the sine.
        df: degrees of freedom of Student's t noise; None for Gaussian noise.
        standardise: whether inputs and targets are standardised by the training split.
        data_seed: decides the noise.
        facts: see `TensorData`.
    """

    def inputs(size: int, middles: bool) -> torch.Tensor:
        cells = size if middles else size - 1
        place = (torch.arange(size, dtype=torch.float64) + 0.5 * middles) / cells
        return half_width * (2 * place[:, None] - 1)

    def draw() -> Splits:
        generator = generator_for(data_seed)
        splits = {}
        for split, size in zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True):
            x_N1 = inputs(size, split != "train")
            error_N1 = torch.randn(size, 1, generator=generator, dtype=torch.float64)
            if df is not None:  # t = normal / √(χ²/ν), χ²/2 being Gamma(ν/2)
                shape_N1 = torch.full((size, 1), df / 2, dtype=torch.float64)
                gamma_N1 = standard_gamma(shape_N1, generator=generator)
                error_N1 = error_N1 / (2 * gamma_N1 / df).sqrt()
            splits[split] = (x_N1, x_N1.sin() + noise * error_N1)
        return splits

    splits = draw()
    target_std = None
    if standardise:
        x, y = splits["train"]
        target_std = [float(y.std(correction=0))]
        splits = {
            split: ((x_ - x.mean()) / x.std(correction=0), (y_ - y.mean()) / y.std(correction=0))
            for split, (x_, y_) in splits.items()
        }
    splits = {split: (x_.float(), y_.float()) for split, (x_, y_) in splits.items()}
    return TensorData(name, splits, target_std=target_std, **facts)
