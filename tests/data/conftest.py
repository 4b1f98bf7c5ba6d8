"""Tiny data sets in the layout of the hub, and the real ones where there are any."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from repro.data.base import catalog

torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
REPOSITORY = Path(__file__).parents[2]


def real_root() -> Path | None:
    """The folder of real benchmark sets, where this machine has one."""
    places = [os.environ.get("REPRO_DATA_ROOT"), REPOSITORY.parent / "shared" / "data" / "hf"]
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


def build_dataset(name: str, root: Path | None = None, /, **overrides: Any) -> Any:
    """What a config of conf/dataset builds, with some of its knobs set otherwise."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        config = compose(f"dataset/{name}")
    OmegaConf.set_struct(config, False)
    config.merge_with(
        {
            "seed": 0,
            "training": {"epochs": 100},
            "data": {"root": None if root is None else str(root)},
        }
    )
    OmegaConf.set_struct(config, True)  # a misspelt knob must not pass
    config.dataset.merge_with(overrides)
    try:
        return instantiate(config.dataset)
    except InstantiationException as error:  # Hydra's wrapping of what the target raised
        raise error.__cause__ or error from None


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write_image_files(
    folder: Path,
    split: str,
    images: list[np.ndarray],
    labels: list[int],
    column: str,
    kind: str = "PNG",
    label_column: str = "label",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": encoded(image, kind), "path": None} for image in images]
    path = folder / f"{split}-00000-of-00001.parquet"
    parquet.write_table(pa.table({column: cells, label_column: labels}), path)
    return path


def write_text_files(folder: Path, split: str, lines: list[str], column: str = "text") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}-00000-of-00001.parquet"
    parquet.write_table(pa.table({column: lines}), path)
    return path


@pytest.fixture
def dataset() -> Callable[..., Any]:
    """`build_dataset`."""
    return build_dataset


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """`write_image_files`."""
    return write_image_files


@pytest.fixture
def write_texts() -> Callable[..., Path]:
    """`write_text_files`."""
    return write_text_files


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Adds the real data sets that this machine has to the tests that take ``real_set``."""
    if "real_set" in metafunc.fixturenames:
        root = real_root()
        here = [e for e in catalog.describe(root) if e.place] if root else []
        real = [
            pytest.param((entry.name, root), marks=pytest.mark.real_data, id=entry.name)
            for entry in here
        ]
        metafunc.parametrize("real_set", [pytest.param(None, id="fake"), *real])


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Keeps tests out of the user's cache, but for those that read the real data."""
    if "real_data" not in request.keywords:
        monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("REPRO_DATA_ROOT", raising=False)


@pytest.fixture
def images() -> Callable[..., list[np.ndarray]]:
    """Makes random images of a shape."""
    draw = np.random.default_rng(0)
    return lambda count, *shape: [draw.integers(0, 256, shape, np.uint8) for _ in range(count)]


@pytest.fixture
def mnist_root(tmp_path, images) -> Path:
    """40 + 20 images like MNIST."""
    folder = tmp_path / "hf" / "ylecun" / "mnist" / "mnist"
    labels = [i % 10 for i in range(40)]
    write_image_files(folder, "train", images(40, 28, 28), labels, "image")
    write_image_files(folder, "test", images(20, 28, 28), labels[:20], "image")
    return tmp_path / "hf"


@pytest.fixture
def imagenet_root(tmp_path, images) -> Path:
    """24 + 8 photographs of changing size, of two classes."""
    folder = tmp_path / "hf" / "ILSVRC" / "imagenet-1k" / "data"
    sizes = [(40, 60), (70, 30), (50, 50), (9, 90)]
    train = [images(1, *sizes[i % 4], 3)[0] for i in range(24)]
    validation = [images(1, *sizes[i % 4], 3)[0] for i in range(8)]
    write_image_files(folder, "train", train, [i % 2 for i in range(24)], "image", "JPEG")
    write_image_files(folder, "validation", validation, [i % 2 for i in range(8)], "image", "JPEG")
    return tmp_path / "hf"
