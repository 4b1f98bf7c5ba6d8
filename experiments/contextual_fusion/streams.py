"""Where frozen networks come from: trained here on half of the truth, or published."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.iterators import BatchIterator
from repro.data.base.modules import TensorData, digest
from repro.data.base.transforms import Normalise
from repro.data.images.composites import SCENES, Composites
from repro.errors import UserError
from repro.knobs import Count, Fraction, Positive, check_choice, checked
from repro.methods.contextual_fusion import Stream
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.toolbox.heads import remove_head
from repro.toolbox.pretrained import WeightsFile, trained_once
from repro.toolbox.schedules import cosine

log = logging.getLogger("repro")
MEAN, STD = 0.5, 0.25  # of pixels, for networks that are trained here
TASKS = {"object": 1, "scene": 2, "nothing": None}  # which tensor of the split ``source`` is learnt


class Source(Protocol):
    """Gives frozen networks by name."""

    def __call__(self, name: str, data: TensorData, device: torch.device, seed: int, /) -> Stream:
        """The network of that name, on `device`."""


class TrainedStreams(Source):
    """Networks that are trained on one task each, where object and scene are independent.

    Args:
        network: called with ``input_shape`` and ``classes``, returns a classifier.
        streams: by name: ``task`` (object, scene or nothing), ``draw`` of weights and batches, and
            settings of its network.
        epochs: passes over the split ``source``.
        lr: largest rate of Adam; it falls along a cosine to zero.
        warmup: fraction of the updates in which the rate rises.
        batch_size: pictures in an update.
        cache: folder for trained weights; None to train anew each time.

    Raises:
        UserError: an unknown task, or a knob out of range.
    """

    @checked
    def __init__(
        self,
        network: Callable[..., nn.Module],
        streams: Mapping[str, Mapping[str, Any]],
        epochs: Count,
        lr: Positive,
        warmup: Fraction,
        batch_size: Count,
        cache: str | Path | None = None,
    ) -> None:
        for stream in streams.values():
            check_choice("streams", "task", stream["task"], TASKS)
        self.network, self.streams = network, streams
        self.epochs, self.lr, self.warmup, self.batch_size = epochs, lr, warmup, batch_size
        self.cache = None if cache is None else Path(cache).expanduser()

    def __call__(self, name: str, data: TensorData, device: torch.device, seed: int) -> Stream:
        """Trains it, or reads what was trained before.

        Raises:
            UserError: there is no such stream, or nothing to train it on.
        """
        if not isinstance(data, Composites):
            raise UserError(
                "contextual_fusion trains its networks on dataset=digits_in_scenes; for another"
                " data set say base=contextual_fusion/published."
            )
        check_choice("streams", "name", name, self.streams)
        settings = dict(self.streams[name])
        task, draw = settings.pop("task"), settings.pop("draw")
        with torch.random.fork_rng([]):
            torch.manual_seed(1000 * seed + draw)  # weights are drawn on the CPU
            classes = len(SCENES) if task == "scene" else data.classes
            model = self.network(input_shape=data.input_shape, classes=classes, **settings)
        model = model.to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
        learnt = TASKS[task]
        if learnt is not None:
            tensors = (data.splits["source"][0], data.splits["source"][learnt])

            def train() -> None:
                log.info("training the network of %s", name)
                batches = BatchIterator(tensors, self.batch_size, shuffle=True, seed=seed + draw)
                self._train(model.to(device), batches)

            key = self._key(model, tensors, f"{task} {draw} {seed} {device.type}")
            trained_once(model, train, None if self.cache is None else self.cache / key)
        width = remove_head(model)
        return Stream(model, width, mean=[MEAN], std=[STD]).to(device)

    def _key(self, model: nn.Module, tensors: Sequence[Tensor], words: str) -> str:
        """Names the result by all that it depends on."""
        recipe = f"{self.epochs} {self.lr} {self.warmup} {self.batch_size}"
        where = f"{torch.get_num_threads()} {torch.__version__}"
        first = digest([*tensors, *model.state_dict().values()])
        whole = f"{model!r} {words} {recipe} {first} {where}"
        return f"stream-{hashlib.sha256(whole.encode()).hexdigest()[:32]}.pt"

    def _train(self, model: nn.Module, batches: BatchIterator) -> None:
        device = next(model.parameters()).device
        as_floats = Normalise([MEAN], [STD])
        with torch.enable_grad(), torch.inference_mode(False):
            model.train()
            optimizer = torch.optim.Adam(model.parameters(), self.lr)
            schedule = cosine(optimizer, self.epochs * len(batches), self.warmup)
            for _ in range(self.epochs):
                for x, y in batches:
                    optimizer.zero_grad()
                    logits = model(as_floats(x.to(device)))
                    F.cross_entropy(logits, y.to(device)).backward()
                    optimizer.step()
                    schedule.step()
            optimizer.zero_grad()


class Published(TypedDict):
    """Where a network's weights are."""

    file: str | None  # below the folder of downloads; None: not trained
    classes: int  # of its own head, which is taken off
    depth: Literal[18, 34, 50, 101, 152]  # of the residual network


class PublishedStreams(Source):
    """Residual networks with published weights, for photographs.

    Args:
        streams: by name.
        size: height and width that pictures are resized to.
        mean: of each channel of what the networks were trained on.
        std: likewise.
        root: folder of downloads, see `repro.data.base.files.data_root`.
        trusted: see `repro.toolbox.pretrained.WeightsFile`.
        info: what stands in for it, see `unloaded`; not used here.
    """

    @checked
    def __init__(
        self,
        streams: Mapping[str, Published],
        size: Count,
        mean: Sequence[float],
        std: Sequence[float],
        root: str | None = None,
        trusted: bool = False,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ) -> None:
        self.streams, self.size, self.mean, self.std = streams, size, mean, std
        self.root, self.trusted = root, trusted

    def __call__(self, name: str, data: TensorData, device: torch.device, seed: int) -> Stream:
        """Reads its weights.

        A `UserError` says so if there is no such stream, or its file is missing or of another
        network.
        """
        check_choice("streams", "name", name, self.streams)
        facts = self.streams[name]
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = ResNetImageNet([3, self.size, self.size], facts["classes"], facts["depth"])
        if facts["file"] is not None:
            knob = f"base.streams.{name}.file"
            WeightsFile(facts["file"], self.root, trusted=self.trusted, knob=knob)(
                model, data, device
            )
        return Stream(model, remove_head(model), self.size, self.mean, self.std).to(device)


def unloaded(streams: Mapping[str, Published], **settings: Any) -> PublishedStreams:
    """Stands in for `PublishedStreams`: the same networks, without the weights.

    Args:
        streams: by name.
        **settings: see `PublishedStreams`.
    """
    bare = {name: Published(**{**facts, "file": None}) for name, facts in streams.items()}
    return PublishedStreams(bare, **settings)
