"""Plain convolutional networks with max-pooling: VGG (Simonyan and Zisserman 2015) and smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Fraction, Known, Natural, checked
from repro.models.parts.chain import Chain
from repro.models.parts.checks import image_shape
from repro.models.parts.residual import he_init
from repro.models.toys.mlp import ACTIVATIONS


class VGG(nn.Module):
    """Stages of convolutions, a 2x2 max-pool behind each stage, then linear layers.

    Maps (batch, *input_shape) to logits (batch, classes). The stages of VGG-11 are ``[[64], [128],
    [256, 256], [512, 512], [512, 512]]``.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        stages: channels of the convolutions of each stage.
        kernel: height and width of all convolutions.
        padding: pixels around the images; None keeps height and width.
        hidden: widths of the linear layers before the last.
        activation: one of `ACTIVATIONS`, behind every layer but the last.
        batch_norm: between each convolution and its activation.
        dropout: rate before each hidden linear layer.
        init: of convolutions: ``default`` is PyTorch's; ``he`` draws weights from N(0, 2 / (kernel
            area x channels out)) and sets biases to zero.

    Raises:
        UserError: a size below 1, an unknown activation, or images that are too small.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        stages: Sequence[Sequence[Count]],
        kernel: Count = 3,
        padding: Natural | None = None,
        hidden: Sequence[Count] = (),
        activation: Annotated[str, Known(tuple(ACTIVATIONS))] = "relu",
        batch_norm: bool = False,
        dropout: Fraction = 0.0,
        init: Literal["default", "he"] = "default",
    ) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        padding = kernel // 2 if padding is None else padding
        channels, height, width = image_shape("vgg", input_shape)
        shrinks = kernel - 1 - 2 * padding
        # What begins the next layer: pooling belongs to the layer behind it, so that a layer's
        # output is what its activation says.
        before: list[nn.Module] = []
        self.units = nn.Sequential()
        for stage in stages:
            for wide in stage:
                conv = nn.Conv2d(channels, wide, kernel, padding=padding)
                norm = [nn.BatchNorm2d(wide)] if batch_norm else []
                self.units.append(nn.Sequential(*before, conv, *norm, act()))
                channels, before = wide, []
                height, width = height - shrinks, width - shrinks
            before = [nn.MaxPool2d(2)]
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            raise UserError(
                f"vgg: {len(stages)} stages of pooling leave nothing of images of shape"
                f" {tuple(input_shape)}: use fewer stages, or images of at least"
                f" {2 ** len(stages)}x{2 ** len(stages)} pixels."
            )
        before.append(nn.Flatten())
        features = channels * height * width
        for wide in hidden:
            drop = [nn.Dropout(dropout)] if dropout else []
            self.units.append(nn.Sequential(*before, *drop, nn.Linear(features, wide), act()))
            features, before = wide, []
        self.head = nn.Sequential(*before, nn.Linear(features, classes))
        self.stages = [number for number, stage in enumerate(stages, 1) for _ in stage]
        self.stages += [len(stages) + 1] * len(hidden)
        if init == "he":
            he_init(self)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        logits: Tensor = self.head(self.units(x))
        return logits

    def chain(self) -> Chain:
        """No stem; every layer is a unit that begins with the pooling before it, if there is."""
        return Chain(nn.Identity(), list(self.units), self.stages, self.head)
