"""The UCI regression sets with the splits published with probabilistic back-propagation."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from repro.data.base.files import data_root, sha256_of
from repro.data.base.modules import TensorData
from repro.data.tables.bundled import SPLIT_SEED, standardised
from repro.errors import UserError, did_you_mean


def uci(
    name: str,
    *,
    split: int = 0,
    val_size: float = 0.1,
    root: str | None = None,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> TensorData:
    """A UCI regression set from ``<root>/../uci/<name>.npz``, in one of its published splits.

    The file holds ``x`` (N, D), ``y`` (N,) and, for each split k, ``test_k``: indices of the test
    examples. Protocol: Hernández-Lobato and Adams, "Probabilistic Backpropagation for Scalable
    Learning of Bayesian Neural Networks", 2015. Features and target are standardised by the
    training part; `TensorData.target_std` brings an error back to the unit of the target.

    Args:
        name: file name without suffix, e.g. ``yacht``.
        split: which published split.
        val_size: share of what is not test, set aside for validation; the same for every run.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    Raises:
        UserError: the file is missing or damaged, or has no such split.
    """
    folder = data_root(root).parent / "uci"
    path = folder / f"{name}.npz"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.npz"))
        here = f"{folder} has {', '.join(known)}.{did_you_mean(name, known)}\n" if known else ""
        raise UserError(
            f"UCI set '{name}' is missing: no {path}.\n{here}Point `data.root=` at the folder"
            " beside a folder uci/ of such files (x, y, test_0, test_1, …)."
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        x, y = arrays["x"], arrays["y"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or not a UCI set ({error}).") from error
    splits = sorted(int(key[5:]) for key in arrays if key.startswith("test_"))
    if split not in splits:
        raise UserError(f"UCI set '{name}' has the splits 0 to {splits[-1]}, not {split}.")
    test = arrays[f"test_{split}"]
    rest = np.random.default_rng(SPLIT_SEED).permutation(np.setdiff1d(np.arange(len(y)), test))
    cut = max(1, round(val_size * len(rest)))
    parts = {"train": rest[cut:], "val": rest[:cut], "test": test}
    return TensorData(
        name,
        standardised(x, y, parts, regression=True),
        target_std=[float(y[parts["train"]].std())],
        source_digest=lambda: sha256_of([path]),
        info=info,
        **facts,
    )
