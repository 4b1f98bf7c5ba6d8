"""The perceptual loss (Johnson et al., ECCV 2016): distances between features of VGG-16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import data_root
from repro.errors import UserError
from repro.models.vision.vgg import VGG

LAYERS = (1, 3, 6)  # relu1_2, relu2_2 and relu3_3 among the convolutions


class PerceptualLoss(nn.Module):
    """Mean over three layers of the squared distance between features, of pictures in [0, 1].

    The pictures are not normalised, as restoration papers have it. The network is fixed.

    Args:
        file: VGG-16's state dictionary as torchvision publishes it; below `root`, or a path of its
            own; None leaves random weights.
        root: folder of all downloads, see `repro.data.base.files.data_root`.
        info: what stands in for it, see `unloaded`; not used here.
    """

    def __init__(
        self,
        file: str | Path | None,
        root: str | Path | None = None,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ) -> None:
        super().__init__()
        stages = [[64, 64], [128, 128], [256, 256, 256]]
        self.layers = VGG([3, 224, 224], 1, stages, hidden=[]).units.eval().requires_grad_(False)
        if file is not None:
            self._load(data_root(root) / file)

    def _load(self, file: Path) -> None:
        if not file.is_file():
            raise UserError(
                f"The perceptual loss is missing its weights: no {file}.\nSave torchvision's VGG-16"
                " there (vgg16-397923af.pth), or switch the loss off with module.perceptual=null."
            )
        weights = torch.load(file, map_location="cpu", weights_only=True)
        kernels = [value for name, value in weights.items() if name.startswith("features.")]
        own = self.layers.state_dict()
        try:  # theirs go on for six more convolutions
            self.layers.load_state_dict(dict(zip(own, kernels[: len(own)], strict=True)))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file}: not the weights of VGG-16.") from error

    def forward(self, x_N3HW: Tensor, target_N3HW: Tensor) -> Tensor:
        """The loss, a number."""
        found: list[Tensor] = []
        x, target = x_N3HW, target_N3HW
        for number, layer in enumerate(self.layers):
            x, target = layer(x), layer(target)
            if number in LAYERS:
                found.append(F.mse_loss(x, target))
        return torch.stack(found).mean()


def unloaded(**_facts: Any) -> PerceptualLoss:
    """Stands in for `PerceptualLoss`: the same network with random weights.

    Args:
        **_facts: where the weights would be.
    """
    return PerceptualLoss(None)
