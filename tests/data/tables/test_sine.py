"""The simulated sine: where its inputs lie and how its noise is distributed."""

import math
from typing import Any

import torch
from scipy import stats

from repro.data.tables.simulated import sine

SIZES: dict[str, Any] = {"train_size": 5, "val_size": 3, "test_size": 4}


def test_inputs_lie_where_they_should() -> None:
    data = sine("sine", **SIZES, noise=0.0, task="regression")
    x, y = data.splits["train"]
    expected = torch.linspace(-math.pi, math.pi, 5)[:, None]
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(y, expected.sin())
    middles = (expected[1:] + expected[:-1]) / 2
    torch.testing.assert_close(data.splits["test"][0], middles)


def test_noise_is_gaussian_or_students() -> None:
    for df, law in ((None, stats.norm), (1, stats.t(1)), (4, stats.t(4))):
        data = sine("sine", train_size=4000, val_size=1, test_size=1, noise=0.5, df=df,
                    data_seed=3, task="regression")  # fmt: skip
        x, y = data.splits["train"]
        error = (y - x.sin())[:, 0].double() / 0.5
        assert stats.kstest(error.numpy(), law.cdf).pvalue > 0.01
        again = sine("sine", train_size=4000, val_size=1, test_size=1, noise=0.5, df=df,
                     data_seed=4, task="regression")  # fmt: skip
        assert not torch.equal(again.splits["train"][1], y)


def test_standardised_by_the_training_split() -> None:
    data = sine("sine", **SIZES, standardise=True, task="regression")
    plain = sine("sine", **SIZES, task="regression")
    x, y = data.splits["train"]
    for values in (x, y):
        assert abs(float(values.mean())) < 1e-6
        assert abs(float(values.std(correction=0)) - 1) < 1e-6
    assert data.target_std is not None
    train, test = plain.splits["train"][1], plain.splits["test"][1]
    torch.testing.assert_close(data.splits["test"][1] * data.target_std + train.mean(), test)
