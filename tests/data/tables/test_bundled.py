"""Bundled and simulated sets, and what every tensor data set promises."""

from __future__ import annotations

import pytest
import torch

from repro.data.base.modules import SPLIT_NAMES, TensorData, digest
from repro.errors import UserError

BUNDLED = ["digits", "wine", "iris", "breast_cancer", "diabetes"]
SIMULATED = ["gaussian_mixture", "linear_regression", "planted_dictionary"]


@pytest.mark.parametrize("name", BUNDLED + SIMULATED)
def test_batches_are_what_the_config_states(dataset, name):
    data = dataset(name)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = next(iter(loader))
        assert tuple(x.shape[1:]) == data.input_shape
        assert x.dtype == torch.float32
        if data.task == "classification":
            assert y.dtype == torch.int64
            assert y.ndim == 1
        else:
            assert y.shape == (len(x), data.targets)
            assert y.dtype == torch.float32


@pytest.mark.parametrize("name", BUNDLED + SIMULATED)
def test_splits_do_not_depend_on_the_seed(dataset, name):
    one, two = dataset(name, seed=0), dataset(name, seed=1)
    assert one.fingerprint() == two.fingerprint()
    first, second = next(iter(one.train_dataloader())), next(iter(two.train_dataloader()))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("name", BUNDLED)
def test_standardised_by_the_training_split(dataset, name):
    data = dataset(name)
    x, y = data.splits["train"]
    axes = None if name == "digits" else 0
    torch.testing.assert_close(x.mean(axes), torch.zeros_like(x.mean(axes)), atol=1e-5, rtol=0)
    std = x.std(axes, correction=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)
    if name == "diabetes":
        assert data.target_std.item() == pytest.approx(77, abs=3)
        assert y.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_digits_split_sizes_and_strata(dataset):
    data = dataset("digits")
    assert data.fingerprint()["sizes"] == {"train": 1293, "val": 144, "test": 360}
    for _, y in data.splits.values():
        share = y.bincount().float() / len(y)
        assert share.sub(0.1).abs().max() < 0.01


def test_splits_of_digits_are_disjoint_and_cover(dataset):
    rows = torch.cat([x.flatten(1) for x, _ in dataset("digits").splits.values()])
    assert len(rows) == 1797
    assert len(rows.unique(dim=0)) == 1797


def test_fingerprint_is_stable(dataset):
    # Changes only when the splits do: then every recorded result is of other data.
    assert dataset("digits").fingerprint()["sha256"].startswith("3e7ea640a0e9")


def test_digest_sees_type_shape_and_content():
    zeros = torch.zeros(4)
    others = [zeros.double(), zeros.view(2, 2), zeros + 1, zeros.bfloat16()]
    assert len({digest([tensor]) for tensor in [zeros, *others]}) == 5
    assert digest([zeros.expand(3, 4)]) == digest([torch.zeros(3, 4)])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("digits", {"classes": 100}, "the config says classes=100, the data have classes=10"),
        ("digits", {"input_shape": [8, 8]}, r"input_shape=\[8, 8\], the data have .*\[1, 8, 8\]"),
        ("diabetes", {"targets": 2}, "targets=2, the data have targets=1"),
        ("digits", {"batch_size": 0}, "batch_size is a whole number of at least 1, not 0"),
        ("wine", {"name": "vine"}, "no table 'vine'.*Did you mean 'wine'"),
    ],
)
def test_a_wrong_fact_is_refused(dataset, name, wrong, message):
    with pytest.raises(UserError, match=message):
        dataset(name, **wrong).setup()


def test_gaussian_mixture_is_separable_as_stated(dataset):
    data = dataset("gaussian_mixture", separation=50.0, train_size=400)
    x, y = data.splits["train"]
    means = torch.stack([x[y == k].mean(0) for k in range(4)])
    x_test, y_test = data.splits["test"]
    assert torch.equal(torch.cdist(x_test, means).argmin(1), y_test)


def test_label_noise_touches_only_training(dataset):
    clean, noisy = dataset("gaussian_mixture"), dataset("gaussian_mixture", label_noise=0.4)
    changed = (clean.splits["train"][1] != noisy.splits["train"][1]).float().mean()
    assert changed.item() == pytest.approx(0.4 * 3 / 4, abs=0.05)
    assert torch.equal(clean.splits["test"][1], noisy.splits["test"][1])


def test_linear_regression_has_the_noise_and_condition_it_states(dataset):
    data = dataset("linear_regression", train_size=20000, condition=100.0, noise=0.5)
    x, y = data.splits["train"]
    variances = x.var(0)
    assert (variances.max() / variances.min()).item() == pytest.approx(100, rel=0.1)
    residual = y - x @ torch.linalg.lstsq(x, y).solution
    assert residual.std().item() == pytest.approx(0.5, rel=0.05)
    other = dataset("linear_regression", data_seed=1)
    assert other.fingerprint()["sha256"] != dataset("linear_regression").fingerprint()["sha256"]


def test_tensors_can_be_given_directly():
    split = (torch.zeros(6, 2), torch.arange(6))
    data = TensorData("mine", dict.fromkeys(SPLIT_NAMES, split), task="classification", classes=6)
    assert data.fingerprint()["sizes"] == {"train": 6, "val": 6, "test": 6}
    assert len(list(data.train_dataloader())) == 1


def test_loading_happens_once_and_late():
    calls = []

    def load():
        calls.append(1)
        return dict.fromkeys(SPLIT_NAMES, (torch.zeros(6, 2), torch.arange(6)))

    data = TensorData("mine", load, task="classification")
    assert not calls
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert len(calls) == 1
