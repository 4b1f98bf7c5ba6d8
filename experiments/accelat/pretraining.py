"""Where training starts: weights from elsewhere, or from a task that needs no labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.files import cached_arrays
from repro.data.base.iterators import generator_for
from repro.data.base.modules import TensorData, digest
from repro.errors import UserError
from repro.toolbox.heads import head_name, replace_head


class Start(Protocol):
    """Changes a model's weights before it is attacked and trained."""

    def __call__(self, model: nn.Module, data: TensorData, device: torch.device, /) -> None:
        """Changes them in place; `model` is on `device`, the inputs of `data` are floats."""


def pretrained(
    weights: str | None = None,
    info: Mapping[str, Any] | None = None,  # noqa: ARG001 - read from the config
    **rotation: Any,
) -> Start:
    """Weights from a file, or, without one, `RotationPretraining`."""
    return RotationPretraining(**rotation) if weights is None else PublishedWeights(weights)


def unloaded(weights: str | None = None, **rotation: Any) -> Start | None:
    """Stands in for `pretrained`: the model keeps its own draw instead of published weights."""
    return pretrained(**rotation) if weights is None else None


class RotationPretraining:
    """Predicts by which quarter turn an image is rotated (Gidaris et al., 2018).

    Stands for the paper's ImageNet weights where there are none: the features come from unlabelled
    pictures, batch norm has seen data, the classifier is new.

    Args:
        steps: Adam updates.
        lr: of Adam.
        batch_size: images in a batch, all four turns of each.
        split: the part of the data set that is looked at; ``train`` where it has no such part.
        cache: keep the weights on disk, for the other arms of the same seed.
    """

    def __init__(
        self,
        steps: int = 200,
        lr: float = 1e-3,
        batch_size: int = 64,
        split: str = "source",
        cache: bool = False,
    ) -> None:
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.split = split
        self.cache = cache

    def __call__(self, model: nn.Module, data: TensorData, device: torch.device) -> None:
        """Trains every layer; afterwards the classifier is freshly drawn.

        Raises:
            UserError: the data are not square images.
        """
        x = data.splits[self.split if self.split in data.splits else "train"][0]
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise UserError(
                "module.start rotates square images, which this data set has not:"
                " set module.start=null, and module.frozen_norm=false."
            )

        def make() -> dict[str, Any]:
            self._train(model, x, data.seed, device)
            return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}

        if self.cache:
            made = cached_arrays(self._key(model, x, data.seed, device), make)
            model.load_state_dict({name: torch.from_numpy(a) for name, a in made.items()})
        else:
            make()
        model.to(device)

    def _train(self, model: nn.Module, x: Tensor, seed: int, device: torch.device) -> None:
        classes = replace_head(model, 4)
        model.to(device).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        generator = generator_for(seed, 1)
        for _ in range(self.steps):
            index = torch.randint(len(x), (self.batch_size,), generator=generator)
            turned, turns = quarter_turns(x[index].to(device))
            optimizer.zero_grad()
            F.cross_entropy(model(turned), turns).backward()
            optimizer.step()
        optimizer.zero_grad()
        replace_head(model, classes)

    def _key(self, model: nn.Module, x: Tensor, seed: int, device: torch.device) -> str:
        """Names the result by all that it depends on; the classifier is drawn by `seed` too."""
        recipe = f"{self.steps} {self.lr} {self.batch_size} {seed} {device} {torch.__version__}"
        words = f"{model!r} {recipe} {digest([x, *model.state_dict().values()])}"
        return f"rotations-{hashlib.sha256(words.encode()).hexdigest()[:32]}"


class PublishedWeights(Start):
    """Weights from a file, all but those of the classifier.

    Args:
        file: a state dict saved by `torch.save`, with the model's own names: torchvision's
            ``resnet50`` weights for model=resnet50, timm's ``mobilenetv1_100`` for mobilenet.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file).expanduser()

    @override
    def __call__(self, model: nn.Module, data: TensorData, device: torch.device) -> None:
        """Loads them; the classifier keeps its fresh draw.

        Raises:
            UserError: the file is missing, damaged, or of another model.
        """
        try:
            weights = torch.load(self.file, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(
                f"There is no file {self.file} of ImageNet weights: save those of torchvision's"
                " resnet50 or timm's mobilenetv1_100\nand say module.start.weights=FILE, or"
                " module.start.weights=null to pretrain on rotations of the training images."
            ) from error
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"module.start.weights: {self.file} is no state dict: {reason}"
            ) from error
        head = head_name(model)
        weights = {k: v for k, v in weights.items() if not k.startswith(f"{head}.")}
        try:
            missing, unknown = model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise UserError(
                f"module.start.weights: {self.file} is of another model: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        missing = [k for k in missing if not k.startswith(f"{head}.")]
        if missing or unknown:
            raise UserError(
                f"module.start.weights: {self.file} is of another model: it lacks {missing[:2]}"
                f" and brings {unknown[:2]}."
            )


def quarter_turns(x: Tensor) -> tuple[Tensor, Tensor]:
    """All four rotations of images (B, C, S, S), and which is which: (4B, C, S, S) and (4B,)."""
    turned = torch.cat([x.rot90(k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))
