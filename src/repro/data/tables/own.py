"""Tables of one's own: a CSV file with a column to predict, or an NPZ file of arrays."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from repro.data.base.files import sha256_of
from repro.data.base.modules import SPLIT_NAMES, Splits, TensorData
from repro.data.tables.bundled import split_indices, standardised
from repro.errors import UserError, did_you_mean
from repro.knobs import Inside, checked


@checked
def csv_table(
    name: str,
    *,
    path: str | None,
    target: str | None,
    task: Literal["classification", "regression"],
    drop: Sequence[str] = (),
    test_size: Inside = 0.2,
    val_size: Inside = 0.1,
    split: int = 0,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> TensorData:
    """A CSV file with a header: numbers in all columns, but for the classes to predict.

    Columns are standardised by the training part, as is the target of a regression.

    Args:
        name: of the data set.
        path: the file.
        target: the column to predict; classes are numbered in the order of their names.
        task: what the target means.
        drop: columns to leave out.
        test_size: share of all rows.
        val_size: share of what is not test.
        split: another number cuts in another way.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    Raises:
        UserError: no file or column is named, or the file cannot be read as such a table.
    """
    if path is None or target is None:
        raise UserError(f"Data set '{name}' takes dataset.path=FILE and dataset.target=COLUMN.")
    file = Path(path).expanduser()
    columns = _columns(file)
    for column in (target, *drop):
        if column not in columns:
            known = ", ".join(columns)
            hint = did_you_mean(column, columns)
            raise UserError(f"{file} has no column '{column}'.{hint} It has {known}.")
    inputs = [column for column in columns if column not in (target, *drop)]
    x_ND = np.stack([_numbers(file, column, columns[column]) for column in inputs], axis=1)
    is_regression = task == "regression"
    if is_regression:
        y_N = _numbers(file, target, columns[target])
    else:
        y_N = np.unique(columns[target], return_inverse=True)[1]
    parts = split_indices(len(y_N), test_size, val_size, None if is_regression else y_N, split)
    std = [float(y_N[parts["train"]].std())] if is_regression else None
    return TensorData(
        name,
        standardised(x_ND, y_N, parts, regression=is_regression),
        task=task,
        target_std=std,
        source_digest=lambda: sha256_of([file]),
        info=info,
        **facts,
    )


def _columns(file: Path) -> dict[str, list[str]]:
    """Reads a CSV file column by column.

    Raises:
        UserError: it cannot be read, or has rows of different lengths.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            head, *rows = [row for row in csv.reader(lines) if row]
        cells = list(zip(*rows, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV: {error}.") from error
    if len(cells) != len(head):
        raise UserError(f"{file}: {len(head)} columns are named, {len(cells)} are there.")
    return {name.strip(): list(column) for name, column in zip(head, cells, strict=True)}


def _numbers(file: Path, column: str, cells: Sequence[str]) -> np.ndarray:
    """A column as numbers.

    Raises:
        UserError: some cell is none, or not finite.
    """
    try:
        numbers = np.array(cells, dtype=float)
    except ValueError as error:
        raise UserError(
            f"{file}, column '{column}': {error}. Leave it out with dataset.drop=[{column}]."
        ) from None
    if not np.isfinite(numbers).all():
        raise UserError(f"{file}, column '{column}' has values that are not finite.")
    return numbers


@checked
def npz_arrays(
    name: str,
    *,
    path: str | None,
    test_size: Inside = 0.2,
    val_size: Inside = 0.1,
    split: int = 0,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> TensorData:
    """Arrays ``x`` (N, …) and ``y`` of an NPZ file, or ``train_x``, ``train_y``, ``val_x``, ….

    Nothing is standardised: arrays are taken as they are, bytes as images (see ``normalise``).

    Args:
        name: of the data set.
        path: the file; read without pickle.
        test_size: share of all examples, where there is no ``test_x``.
        val_size: share of what is not test, likewise.
        split: another number cuts in another way.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    Raises:
        UserError: no file is named.
    """
    if path is None:
        raise UserError(f"Data set '{name}' takes a file of arrays: dataset.path=FILE.npz.")
    file = Path(path).expanduser()
    is_labelled = facts.get("task") == "classification"

    def load() -> Splits:
        arrays = _arrays(file)
        if all(f"{part}_{axis}" in arrays for part in SPLIT_NAMES for axis in "xy"):
            pairs = {part: (arrays[f"{part}_x"], arrays[f"{part}_y"]) for part in SPLIT_NAMES}
        elif "x" in arrays and "y" in arrays:
            x, y = arrays["x"], arrays["y"]
            parts = split_indices(len(y), test_size, val_size, y if is_labelled else None, split)
            pairs = {part: (x[index], y[index]) for part, index in parts.items()}
        else:
            raise UserError(
                f"{file} has the arrays {', '.join(sorted(arrays))}; it takes x and y, or "
                "train_x, train_y, val_x, val_y, test_x and test_y."
            )
        return {part: (_inputs(x), _targets(y, is_labelled)) for part, (x, y) in pairs.items()}

    return TensorData(name, load, source_digest=lambda: sha256_of([file]), info=info, **facts)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as NPZ: {error}.") from error


def _inputs(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x) if x.dtype == np.uint8 else torch.from_numpy(x).float()


def _targets(y: np.ndarray, is_labelled: bool) -> torch.Tensor:
    """Classes (N,), or targets (N, T)."""
    if is_labelled:
        return torch.from_numpy(y).long()
    return torch.from_numpy(y).float().view(len(y), -1)
