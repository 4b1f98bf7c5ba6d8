"""Image benchmarks from folders laid out as on the hub."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from repro.data.base.files import cached_arrays
from repro.data.base.transforms import Normalise
from repro.data.images import hub as images_module
from repro.errors import UserError

SMALL = {"val_size": 10, "batch_size": 8}
TINY: dict[str, Any] = {
    "classes": 2,
    "val_size": 4,
    "batch_size": 5,
    "eval_batch_size": 3,
    "workers": 0,
}
TINY["input_shape"] = [3, 16, 16]


@pytest.fixture(autouse=True)
def _forget():
    images_module._decoded.cache_clear()


def test_images_are_decoded_exactly(dataset, write_images, tmp_path, images):
    folder = tmp_path / "uoft-cs" / "cifar10" / "plain_text"
    pictures = images(20, 32, 32, 3)
    labels = [i % 10 for i in range(20)]
    write_images(folder, "train", pictures, labels, "img")
    write_images(folder, "test", pictures, labels, "img")
    data = dataset("cifar10", tmp_path, val_size=5)
    x = torch.cat([data.splits["val"][0], data.splits["train"][0]])
    y = torch.cat([data.splits["val"][1], data.splits["train"][1]])
    assert x.dtype == torch.uint8
    expected = {
        image.transpose(2, 0, 1).tobytes(): k for image, k in zip(pictures, labels, strict=True)
    }
    found = {image.numpy().tobytes(): int(k) for image, k in zip(x, y, strict=True)}
    assert found == expected
    batch, _ = next(iter(data.val_dataloader()))
    norm = Normalise([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    assert torch.equal(batch, norm(data.splits["val"][0]))


def test_chosen_examples_are_normalised_and_not_augmented(dataset, mnist_root):
    data = dataset("mnist", mnist_root, **SMALL)
    x, y = data.take("test", torch.tensor([4, 1]))
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(x, batch[0][[4, 1]])
    assert torch.equal(y, data.labels("test")[[4, 1]])


def test_validation_is_cut_from_training_and_limit_from_the_rest(dataset, mnist_root):
    whole = dataset("mnist", mnist_root, **SMALL)
    limited = dataset("mnist", mnist_root, limit=7, seed=9, **SMALL)
    assert whole.fingerprint()["sizes"] == {"train": 30, "val": 10, "test": 20}
    assert limited.fingerprint()["sizes"] == {"train": 7, "val": 10, "test": 20}
    assert torch.equal(limited.splits["val"][0], whole.splits["val"][0])
    assert torch.equal(limited.splits["train"][0], whole.splits["train"][0][:7])
    assert limited.fingerprint()["sha256"] == whole.fingerprint()["sha256"]
    assert len(next(iter(whole.train_dataloader()))[0]) == 8


def test_the_second_process_reads_the_cache(dataset, mnist_root, monkeypatch):
    first = dataset("mnist", mnist_root, **SMALL).splits["train"]
    images_module._decoded.cache_clear()
    monkeypatch.setattr(images_module, "_decode", None)
    assert all(map(torch.equal, first, dataset("mnist", mnist_root, **SMALL).splits["train"]))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    arrays: dict[str, Any] = {"x": np.arange(1000, dtype=np.uint8), "y": np.arange(5)}
    cached_arrays("key", lambda: arrays, tmp_path)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[400] ^= 1
    path.write_bytes({"cut": data[:-200], "flip": data, "empty": b"", "text": b"no zip"}[damage])
    calls = []
    again = cached_arrays("key", lambda: calls.append(1) or arrays, tmp_path)  # type: ignore[func-returns-value]
    assert calls == [1]
    assert np.array_equal(again["x"], arrays["x"])
    stored = cached_arrays("key", lambda: pytest.fail("made a third time"), tmp_path)
    assert np.array_equal(stored["x"], arrays["x"])
    assert len(list(tmp_path.iterdir())) == 1


def test_where_nothing_can_be_written_nothing_is_cached(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    arrays = {"x": np.arange(3)}
    assert cached_arrays("key", lambda: arrays, blocked / "folder") is arrays


def test_changed_files_are_decoded_anew(dataset, write_images, mnist_root, images):
    before = dataset("mnist", mnist_root, **SMALL).fingerprint()
    folder = mnist_root / "ylecun" / "mnist" / "mnist"
    write_images(folder, "train", images(40, 28, 28), [i % 10 for i in range(40)], "image")
    after = dataset("mnist", mnist_root, **SMALL)
    assert after.fingerprint()["sha256"] != before["sha256"]


class TestMessages:
    def test_missing(self, dataset, tmp_path):
        with pytest.raises(UserError) as caught:
            dataset("mnist", tmp_path).setup()
        message = str(caught.value)
        assert "Data set 'mnist' is missing" in message
        assert "18 MB" in message
        assert "repro data fetch mnist" in message
        assert "data.root=" in message
        assert len(message.splitlines()) <= 3

    def test_damaged(self, dataset, mnist_root):
        (path,) = mnist_root.glob("**/train-*.parquet")
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            dataset("mnist", mnist_root, **SMALL).setup()

    def test_damaged_in_the_middle(self, dataset, mnist_root):
        (path,) = mnist_root.glob("**/train-*.parquet")
        data = bytearray(path.read_bytes())
        data[20:4000] = bytes(3980)
        path.write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            dataset("mnist", mnist_root, **SMALL).setup()

    def test_incomplete(self, dataset, mnist_root):
        (path,) = mnist_root.glob("**/train-*.parquet")
        path.rename(path.with_name("train-00000-of-00003.parquet"))
        with pytest.raises(UserError, match="incomplete: 1 of 3 files"):
            dataset("mnist", mnist_root, **SMALL).setup()

    def test_wrong_column(self, dataset, mnist_root):
        with pytest.raises(UserError, match=r"no column 'img'; it has \['image', 'label'\]"):
            dataset("mnist", mnist_root, image_column="img", **SMALL).setup()

    def test_wrong_classes(self, dataset, mnist_root):
        with pytest.raises(UserError, match="classes=100, the data have classes=10"):
            dataset("mnist", mnist_root, classes=100, **SMALL).setup()

    @pytest.mark.parametrize("val_size", [0, 40])
    def test_wrong_val_size(self, dataset, mnist_root, val_size):
        with pytest.raises(UserError, match="Choose 1 to 39"):
            dataset("mnist", mnist_root, val_size=val_size).setup()

    def test_wrong_limit(self, dataset, mnist_root):
        with pytest.raises(UserError, match="limit is a whole number of at least 1 or null, not 0"):
            dataset("mnist", mnist_root, val_size=10, limit=0).setup()

    @pytest.mark.parametrize("module", ["pyarrow", "PIL"])
    def test_extra_not_installed(self, dataset, mnist_root, monkeypatch, module):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"pip install 'gradient-repro\[data\]'"):
            dataset("mnist", mnist_root, **SMALL).setup()


class TestStreamedImages:
    def test_batches_and_sizes(self, dataset, imagenet_root):
        data = dataset("imagenet", imagenet_root, **TINY)
        assert data.fingerprint()["sizes"] == {"train": 20, "val": 4, "test": 8}
        batches = list(data.train_dataloader())
        assert len(batches) == 4
        assert all(x.shape == (5, 3, 16, 16) and y.dtype == torch.int64 for x, y in batches)
        assert sum(len(y) for _, y in data.test_dataloader()) == 8

    def test_crops_are_a_function_of_seed_epoch_and_example(self, dataset, imagenet_root):
        data = dataset("imagenet", imagenet_root, **TINY)
        one, two = data.train_dataloader(), data.train_dataloader()
        first = list(one)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, two, strict=True))
        assert not torch.equal(first[0][0], next(iter(one))[0])

    def test_workers_and_resuming_change_nothing(self, dataset, imagenet_root):
        straight = list(dataset("imagenet", imagenet_root, **TINY).train_dataloader())
        stopped = dataset("imagenet", imagenet_root, **TINY | {"workers": 2}).train_dataloader()
        batches = iter(stopped)
        consumed = [next(batches), next(batches)]
        state = stopped.state_dict()
        del batches
        assert state["batch"] == 2  # not what the workers have read ahead
        resumed = dataset("imagenet", imagenet_root, **TINY).train_dataloader()
        resumed.load_state_dict(state)
        for (x, y), (x_too, y_too) in zip(straight, consumed + list(resumed), strict=True):
            assert torch.equal(x, x_too)
            assert torch.equal(y, y_too)

    def test_evaluation_takes_the_central_square(self, dataset, write_images, tmp_path):
        folder = tmp_path / "ILSVRC" / "imagenet-1k" / "data"
        image = np.zeros((128, 256, 3), np.uint8)
        image[8:120, 72:184] = 255  # the central 112 of 128 rows, and as many columns
        for split in ("train", "validation"):
            write_images(folder, split, [image, image], [0, 1], "image")
        data = dataset("imagenet", tmp_path, **TINY | {"val_size": 1, "input_shape": [3, 112, 112]})
        x, _ = next(iter(data.test_dataloader()))
        torch.testing.assert_close(x[:, 0], torch.full_like(x[:, 0], (1 - 0.485) / 0.229))

    def test_a_test_split_is_published_or_cut(self, dataset, images, write_images, tmp_path):
        pictures, labels = images(24, 20, 30, 3), [i % 2 for i in range(24)]
        folder = tmp_path / "microsoft" / "cats_vs_dogs" / "data"
        path = write_images(folder, "train", pictures, labels, "image")
        table = parquet.read_table(path)
        parquet.write_table(table.rename_columns(["image", "labels"]), path)
        cats = dataset("cats_vs_dogs", tmp_path, **TINY | {"test_size": 6, "eval_batch_size": 24})
        assert cats.fingerprint()["sizes"] == {"train": 14, "val": 4, "test": 6}
        parts = torch.cat(list(cats._indices.values()))
        assert parts.sort().values.tolist() == list(range(24))
        folder = tmp_path / "Donghyun99" / "Oxford-Flower-102" / "data"
        for split, size in (("train", 8), ("test", 4)):
            write_images(folder, split, pictures[:size], labels[:size], "image")
        flowers = dataset("flowers102", tmp_path, **TINY)
        assert flowers.fingerprint()["sizes"] == {"train": 4, "val": 4, "test": 4}
        with pytest.raises(UserError, match=r"dataset\.test_split or a dataset\.test_size above"):
            dataset("flowers102", tmp_path, **TINY | {"test_size": 3})

    def test_examples_can_be_chosen_by_their_labels(self, dataset, imagenet_root):
        data = dataset("imagenet", imagenet_root, **TINY)
        for split in ("train", "val", "test"):
            labels = data.labels(split)
            chosen = (labels == 1).nonzero().flatten()
            x, y = data.take(split, chosen)
            assert y.tolist() == [1] * len(chosen)
            assert x.shape == (len(chosen), 3, 16, 16)
        stored = torch.cat([x for x, _ in data.test_dataloader()])
        assert torch.equal(data.take("test", torch.tensor([5, 2]))[0], stored[[5, 2]])

    def test_messages(self, dataset, tmp_path, imagenet_root):
        with pytest.raises(UserError, match=r"'imagenet' is missing.*\n.*156 GB"):
            dataset("imagenet", tmp_path, **TINY).setup()
        with pytest.raises(UserError, match="classes=1000, the data have classes=2"):
            dataset("imagenet", imagenet_root, **TINY | {"classes": 1000}).setup()
        with pytest.raises(UserError, match="colour squares"):
            dataset("imagenet", imagenet_root, **TINY | {"input_shape": [1, 16, 16]})
        (path,) = imagenet_root.glob("**/train-*.parquet")
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            dataset("imagenet", imagenet_root, **TINY).setup()


def test_real_sets_are_as_their_configs_state(dataset, real_set, mnist_root):
    """Runs over a fake set everywhere, and over each real one where there is one."""
    name, root = real_set or ("mnist", mnist_root)
    data = dataset(name, root, **({} if real_set else SMALL))
    data.setup()
    assert all(size > 0 for size in data.fingerprint()["sizes"].values())
    batches = sum(1 for _ in data.train_dataloader())
    assert batches == len(data.train_dataloader())
    if real_set and getattr(data, "normalise", None):
        sample = data.normalise(data.splits["train"][0][:5000])
        assert sample.mean().abs() < 0.02
        assert (sample.std() - 1).abs() < 0.05
