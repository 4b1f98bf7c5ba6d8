"""The UCI regression sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from repro.errors import UserError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "uci").mkdir()
    draw = np.random.default_rng(0)
    x = draw.normal(3, 7, (50, 6))
    x[:, 2] = 4  # a constant column
    tests: dict[str, Any] = {
        f"test_{k}": draw.permutation(50)[:5].astype(np.int32) for k in range(3)
    }
    np.savez(tmp_path / "uci" / "yacht.npz", x=x, y=10 * x[:, 0], **tests)
    return tmp_path / "hf"


def test_published_split_is_standardised_by_training(dataset, root):
    data = dataset("uci", root, split=1)
    assert data.fingerprint()["sizes"] == {"train": 41, "val": 4, "test": 5}
    x, y = data.splits["train"]
    std = torch.tensor([1.0, 1, 0, 1, 1, 1])
    torch.testing.assert_close(x.std(0, correction=0), std)
    assert y.shape == (41, 1)
    stored = np.load(root.parent / "uci" / "yacht.npz")
    expected = torch.from_numpy(stored["y"][stored["test_1"]]).float()
    test_y = data.splits["test"][1][:, 0] * data.target_std
    torch.testing.assert_close(test_y - test_y[0], expected - expected[0], atol=1e-3, rtol=1e-4)


def test_splits_differ_and_cover(dataset, root):
    zero, one = dataset("uci", root, split=0), dataset("uci", root, split=1)
    assert not torch.equal(zero.splits["test"][0], one.splits["test"][0])
    column = torch.cat([x[:, 0] for x, _ in zero.splits.values()])
    assert len(column.unique()) == 50


def test_messages(dataset, root, tmp_path):
    with pytest.raises(UserError, match="splits 0 to 2, not 3"):
        dataset("uci", root, split=3)
    with pytest.raises(UserError, match=r"'yach' is missing.*\n.*has yacht.*Did you mean 'yacht'"):
        dataset("uci", root, name="yach")
    with pytest.raises(UserError, match="missing"):
        dataset("uci", tmp_path / "elsewhere" / "hf")
    with pytest.raises(UserError, match=r"input_shape=\[7\], the data have input_shape=\[6\]"):
        dataset("uci", root, input_shape=[7]).setup()
    path = root.parent / "uci" / "yacht.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"yacht.npz is damaged"):
        dataset("uci", root)
