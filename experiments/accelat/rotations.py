"""A start for training: features learnt from a task that needs no labels."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import cached_arrays
from repro.data.base.iterators import generator_for
from repro.data.base.modules import TensorData, digest
from repro.errors import UserError
from repro.toolbox.heads import replace_head


def rotations(
    model: nn.Module,
    data: TensorData,
    device: torch.device,
    steps: int = 200,
    lr: float = 1e-3,
    batch_size: int = 64,
    split: str = "source",
) -> None:
    """Teaches a model by which quarter turn an image is rotated (Gidaris et al., 2018).

    Stands for the paper's ImageNet weights where there are none: the features come from unlabelled
    pictures, batch norm has seen data; afterwards the classifier is freshly drawn. The weights are
    kept on disk, for the other arms of the same seed.

    Args:
        model: every layer is trained; it ends on `device`.
        data: its seed decides what is drawn.
        device: where to train.
        steps: Adam updates.
        lr: of Adam.
        batch_size: images in a batch, all four turns of each.
        split: the part of the data set that is looked at; ``train`` where it has no such part.

    Raises:
        UserError: the data are not square images.
    """
    x = data.splits[split if split in data.splits else "train"][0]
    if x.dim() != 4 or x.shape[2] != x.shape[3]:
        raise UserError(
            "module.start rotates square images, which this data set has not:"
            " set module.start=null, and module.frozen_norm=false."
        )

    def make() -> dict[str, Any]:
        classes = replace_head(model, 4)
        model.to(device).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        generator = generator_for(data.seed, 1)
        for _ in range(steps):
            index = torch.randint(len(x), (batch_size,), generator=generator)
            turned, turns = quarter_turns(x[index].to(device))
            optimizer.zero_grad()
            F.cross_entropy(model(turned), turns).backward()
            optimizer.step()
        optimizer.zero_grad()
        replace_head(model, classes)
        return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}

    # All that the result depends on; the classifier is drawn by the seed, too.
    recipe = f"{steps} {lr} {batch_size} {data.seed} {device} {torch.__version__}"
    words = f"{model!r} {recipe} {digest([x, *model.state_dict().values()])}"
    key = f"rotations-{hashlib.sha256(words.encode()).hexdigest()[:32]}"
    weights = cached_arrays(key, make)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    model.to(device)


def quarter_turns(x: Tensor) -> tuple[Tensor, Tensor]:
    """All four rotations of images (B, C, S, S), and which is which: (4B, C, S, S) and (4B,)."""
    turned = torch.cat([x.rot90(k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))
