"""Tables and arrays of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.errors import UserError

ROWS = 40


def write_csv(file: Path, last: str = "") -> Path:
    lines = ["length,note,width,kind"]
    for row in range(ROWS):
        lines.append(f"{row},n{row},{2 * row + 1},{'odd' if row % 2 else 'even'}")
    file.write_text("\n".join(lines) + f"\n{last}")
    return file


def test_a_table_with_classes(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    path = str(write_csv(tmp_path / "t.csv"))
    data = dataset("csv", path=path, target="kind", drop=["note"], input_shape=[2])
    sizes = {name: len(y) for name, (_, y) in data.splits.items()}
    assert sizes == {"train": 28, "val": 4, "test": 8}
    x_ND, y_N = data.splits["train"]
    assert x_ND.mean(0).abs().max() < 1e-6
    assert x_ND.std(0, correction=0) == pytest.approx([1.0, 1.0])
    for x_ND, y_N in data.splits.values():
        # Both columns are the row's number but for scale, and odd rows are of class 1.
        assert torch.allclose(x_ND[:, 0], x_ND[:, 1], atol=1e-5)
        row = x_ND[:, 0] * data_std(data) + data_mean(data)
        assert torch.equal(row.round().long() % 2, y_N)


def data_mean(data: Any) -> float:
    """Of the rows' numbers in the training part: what no standardised column knows."""
    x = torch.cat([x[:, 0] for x, _ in data.splits.values()]).sort().values
    step = (x[1:] - x[:-1]).mean()
    return float(-x[0] / step)


def data_std(data: Any) -> float:
    x = torch.cat([x[:, 0] for x, _ in data.splits.values()]).sort().values
    return float(1 / (x[1:] - x[:-1]).mean())


def test_a_table_with_a_number_to_predict(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    path = str(write_csv(tmp_path / "t.csv"))
    knobs = {"task": "regression", "classes": None, "targets": 1, "input_shape": [1]}
    data = dataset("csv", path=path, target="width", drop=["note", "kind"], **knobs)
    _, y_N1 = data.splits["train"]
    assert y_N1.shape == (28, 1)
    assert float(y_N1.std(correction=0)) == pytest.approx(1.0)
    assert float(data.target_std) == pytest.approx(2 * data_std(data), rel=1e-4)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"target": None}, "dataset.path=FILE and dataset.target=COLUMN"),
        ({"target": "knd"}, "no column 'knd'. Did you mean 'kind'?"),
        ({"drop": []}, "column 'note': .* Leave it out with dataset.drop"),
        ({"path": "none.csv"}, "cannot be read as CSV"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, dataset: Callable[..., Any], knobs: dict[str, Any], said: str
) -> None:
    path = str(write_csv(tmp_path / "t.csv"))
    with pytest.raises(UserError, match=said):
        dataset("csv", **{"path": path, "target": "kind", "drop": ["note"], **knobs})


@pytest.mark.parametrize(
    ("last", "said"), [("1,2\n", "cannot be read as CSV"), ("nan,n,1,odd\n", "not finite")]
)
def test_damaged_rows_are_said(
    tmp_path: Path, dataset: Callable[..., Any], last: str, said: str
) -> None:
    path = str(write_csv(tmp_path / "t.csv", last))
    with pytest.raises(UserError, match=said):
        dataset("csv", path=path, target="kind", drop=["note"])


def test_arrays_are_taken_as_they_are(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    x, y = np.arange(80.0).reshape(20, 4), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = dataset("npz", path=str(tmp_path / "a.npz"))
    assert {name: len(part[1]) for name, part in data.splits.items()} == {
        "train": 14,
        "val": 2,
        "test": 4,
    }
    for x_ND, y_N in data.splits.values():
        row = (x_ND[:, 0] / 4).long()
        assert torch.equal(row % 2, y_N)
        assert torch.equal(x_ND, torch.from_numpy(x).float()[row])


def test_arrays_may_come_in_parts(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    sizes = {"train": 6, "val": 2, "test": 3}
    parts: dict[str, Any] = {f"{p}_x": np.full((n, 4), n) for p, n in sizes.items()}
    parts |= {f"{p}_y": np.full(n, n / 2) for p, n in sizes.items()}
    np.savez(tmp_path / "a.npz", **parts)
    knobs = {"task": "regression", "classes": None, "targets": 1}
    data = dataset("npz", path=str(tmp_path / "a.npz"), **knobs)
    assert data.splits["val"][0].tolist() == [[2.0] * 4] * 2
    assert data.splits["test"][1].tolist() == [[1.5]] * 3


def test_bytes_are_images(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    x = np.full((20, 1, 2, 2), 255, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    knobs = {"input_shape": [1, 2, 2], "normalise": {"mean": [0.5], "std": [0.25]}}
    batch, _ = next(iter(dataset("npz", path=str(tmp_path / "a.npz"), **knobs).train_dataloader()))
    assert batch.unique().tolist() == [2.0]


def test_what_is_wrong_with_arrays_is_said(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"dataset.path=FILE.npz"):
        dataset("npz")
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read as NPZ"):
        dataset("npz", path=str(tmp_path / "a.npz")).setup()
    np.savez(tmp_path / "b.npz", z=np.zeros(3))
    with pytest.raises(UserError, match="has the arrays z; it takes x and y"):
        dataset("npz", path=str(tmp_path / "b.npz")).setup()
