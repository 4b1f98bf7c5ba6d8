"""Stand-ins have the shapes, types, labels and sizes of the data sets that they stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from repro.data.stand_ins import RepeatedTokens
from repro.planning.rehearse import stood_in

FOLDER = Path(str(files("repro.conf"))) / "dataset"


def is_suite(config: dict[str, Any]) -> bool:
    """Whether it consists of data sets, each with a config of its own."""
    return isinstance(config.get("sets"), dict)


def written(name: str) -> dict[str, Any]:
    """What the config of a data set says, with what it takes over from another one."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    parents = [name for name in config.get("defaults", []) if name != "_self_" and "@" not in name]
    return {**{k: v for parent in parents for k, v in written(parent).items()}, **config}


CONFIGS = {file.stem: written(file.stem) for file in sorted(FOLDER.glob("*.yaml"))}
ALONE = [name for name, config in CONFIGS.items() if not config["info"]["bundled"]]
PHOTOGRAPHS = [name for name, config in CONFIGS.items() if "workers" in config]
IN_PARQUET = [n for n in ALONE if "image_column" in CONFIGS[n] and "hub" in CONFIGS[n]["info"]]
SMALL: dict[str, dict[str, Any]] = {  # where the real sizes take long to draw
    "medmnist": {"batch_size": 4, "eval_batch_size": 4},
    **{name: {"workers": 0, "batch_size": 4, "eval_batch_size": 4} for name in PHOTOGRAPHS},
    **{
        name: {
            "workers": 0,
            "batch_size": 2,
            "eval_batch_size": 2,
            "val_size": 4,
            "info": {"stand_in": {"train": 100, "test": 4}},
        }
        for name in ("coco", "voc")
    },
    "vessap": {"info": {"stand_in": {"train": 4, "val": 2, "test": 2}}},
    "coco_objects": {"val_size": 20, "info": {"stand_in": {"train": 200, "test": 100}}},
    "stl10": {"info": {"stand_in": {"train": 600, "test": 100}}},
}


@pytest.fixture
def stand_in(dataset: Callable[..., Any]) -> Callable[[str], Any]:
    """What stands in for a data set."""
    return partial(_stand_in, dataset)


def _stand_in(build: Callable[..., Any], name: str) -> Any:
    info = CONFIGS[name]["info"]
    return build(name, **{**SMALL.get(name, {}), "_target_": info["stand_in"]["target"]})


def first(batches: Any) -> tuple[Tensor, ...]:
    batch: tuple[Tensor, ...] = next(iter(batches))
    return batch


@pytest.mark.parametrize("name", [n for n in ALONE if not is_suite(CONFIGS[n])])
def test_every_set_that_must_be_fetched_has_one(name: str, stand_in: Callable[[str], Any]) -> None:
    data, config = stand_in(name), CONFIGS[name]
    data.setup()
    for batches in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y, *_ = first(batches)
        assert len(x) == len(y) > 0
        if "vocab_size" in config:
            assert x.shape == y.shape
            assert x.dtype == y.dtype == torch.int64
            assert max(x.max(), y.max()) < config["vocab_size"]
            assert torch.equal(x[:, 1:], y[:, :-1])
        else:
            known = config["input_shape"] is not None and config.get("task") != "detection"
            assert not known or list(x.shape[1:]) == config["input_shape"]
        if config.get("task") == "detection":
            assert y.shape[2] == 7
            assert y[..., 0].max() < config["classes"]
        elif "classes" in config:
            assert y.dtype == torch.int64
            assert y.max() < config["classes"]
    assert data.fingerprint()["sha256"] == "stand-in"


@pytest.mark.parametrize("name", [n for n in ALONE if is_suite(CONFIGS[n])])
def test_suites_consist_of_stand_ins(name: str) -> None:
    sets = {key: value["name"] for key, value in CONFIGS[name]["sets"].items() if "name" in value}
    assert set(sets.values()) <= CONFIGS["uci"]["info"]["stand_in"]["examples"].keys()


@pytest.mark.parametrize("name", IN_PARQUET)
def test_it_does_in_place_of_files_of_the_hub(
    name: str,
    tmp_path: Path,
    dataset: Callable[..., Any],
    stand_in: Callable[[str], Any],
    write_images: Callable[..., Path],
) -> None:
    """Its batches are like those of the real loader, of tiny files in the layout of the hub."""
    config, info = CONFIGS[name], CONFIGS[name]["info"]
    channels, *size = config["input_shape"]
    size = [20, 30] if name in PHOTOGRAPHS else size  # which may have any
    labels = [*range(config["classes"])] * 2
    pictures = [np.full([*size, channels][: 1 + channels], n % 256, np.uint8) for n in labels]
    columns = config["image_column"], "PNG", config["label_column"]
    for split in info["splits"]:
        write_images(tmp_path / info["hub"] / info["config"], split, pictures, labels, *columns)
    sizes = {"val_size": 1, "batch_size": 2, **SMALL.get(name, {})}
    if config.get("test_split", "") is None:
        sizes = {**sizes, "val_size": 1, "batch_size": 1, "test_size": 1}
    real = dataset(name, tmp_path, **sizes)
    made_up = stand_in(name)
    for one, other in zip(
        first(real.train_dataloader()), first(made_up.train_dataloader()), strict=True
    ):
        assert one.dtype == other.dtype
        assert one.shape[1:] == other.shape[1:]


def test_labels_of_photographs_are_those_of_their_rows(stand_in: Callable[[str], Any]) -> None:
    data = stand_in("imagenet")
    assert torch.equal(data.labels("test")[:4], first(data.test_dataloader())[1])


def test_long_streams_repeat_a_short_one() -> None:
    stream = RepeatedTokens(torch.arange(7, dtype=torch.int32), 10**10)
    assert len(stream) == 10**10
    assert stream[torch.tensor([[0, 6], [7, 10**10 - 1]])].tolist() == [
        [0, 6],
        [0, (10**10 - 1) % 7],
    ]
    assert stream.nbytes == 4 * 10**10
    assert stream.max() == 6


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from targets(value)


def test_a_stand_in_takes_the_place_of_what_it_stands_for_at_any_depth() -> None:
    info = {"stand_in": {"target": "other"}}
    node = {"a": {"_target_": "real", "info": info}, "b": [{"_target_": "kept"}], "info": info}
    assert list(targets(stood_in(node))) == ["other", "other"]
    assert node["a"]["_target_"] == "real"  # type: ignore[index]
