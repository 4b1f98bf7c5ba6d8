"""What a block is trained with: auxiliary classifiers, image decoders, and the losses on them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Probability, checked
from repro.models.parts.residual import conv3x3, he_init


def auxiliary_head(
    spec: str,
    shape: Sequence[int],
    classes: int,
    widest: int,
    features: int = 128,
    widen: float = 1.0,
) -> nn.Sequential:
    """A small classifier for features of one block.

    ``AcBf`` means A convolutions (3x3, batch norm, ReLU), global average pooling and B linear
    layers, those between of ``features`` units. The first convolution doubles the channels and
    halves the image until the channels are the network's ``widest``: with the 16, 32 and 64
    channels of a CIFAR ResNet it has 32, 64 and 64 channels and stride 2, 2 and 1, as in the
    official code. ``imagenet`` is the official head for ImageNet.

    Args:
        spec: ``AcBf`` with A >= 0 and B >= 1, such as ``2c2f``; or ``imagenet``.
        shape: of one example's features: (C, H, W), or (C,) if A = 0.
        classes: number of outputs.
        widest: channels of the last unit.
        features: width of the hidden linear layers.
        widen: factor on the channels of the convolutions.

    Raises:
        UserError: the spec says nothing, or has convolutions where features are vectors.
    """
    channels = shape[0]
    match = re.fullmatch(r"(\d)c([1-9])f", spec)
    if match is None and spec != "imagenet":
        raise UserError(f"method.head is like 1c2f (convolutions, linear layers), not '{spec}'.")
    convolutions = int(match[1]) if match else 4
    if len(shape) != 3 and convolutions:
        raise UserError(
            f"method.head={spec} has convolutions, but this model's features are vectors: choose"
            " method.head=0c1f or 0c2f."
        )
    layers: list[nn.Module] = []
    if match is None:
        for kernel, stride, width in ((1, 1, 128), (3, 2, 256), (3, 2, 512), (1, 1, 2048)):
            conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    elif convolutions:
        width = round(widen * min(2 * channels, widest))
        stride = 2 if channels < widest else 1
        for _ in range(convolutions):
            layers += [conv3x3(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU()]
            channels, stride = width, 1
    if len(shape) == 3:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(int(match[2]) - 1 if match else 0):
        layers += [nn.Linear(channels, features), nn.ReLU()]
        channels = features
    head = nn.Sequential(*layers, nn.Linear(channels, classes))
    he_init(head)
    return head


class Decoder(nn.Module):
    """Paints the image from a block's features, up to the last sigmoid (InfoPro).

    CIFAR size: resized to the image, a convolution to 12 channels, batch norm, ReLU, and one to
    the image's channels. ImageNet: a 1x1 convolution to 128 channels, then the image size in three
    doublings with 32, 12 and the image's channels.

    Args:
        channels: of the features.
        image: (channels, height, width) of one image.
        kind: ``cifar`` or ``imagenet``.
    """

    def __init__(self, channels: int, image: Sequence[int], kind: str = "cifar") -> None:
        super().__init__()
        painted, height, width = image
        self.layers = nn.Sequential()
        if kind == "imagenet":
            self.layers.append(nn.Conv2d(channels, 128, 1, bias=False))
            self.layers.extend([nn.BatchNorm2d(128), nn.ReLU()])
            plan = [(4, 32), (2, 12), (1, painted)]
            channels = 128
        else:
            plan = [(1, 12), (1, painted)]
        size = None
        for step, (divisor, out) in enumerate(plan, 1):
            if size != (size := (height // divisor, width // divisor)):
                self.layers.append(nn.Upsample(size, mode="bilinear", align_corners=True))
            last = step == len(plan)  # no batch norm follows, so it has a bias
            self.layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=last))
            if not last:
                self.layers.extend([nn.BatchNorm2d(out), nn.ReLU()])
            channels = out
        he_init(self)

    def forward(self, y: Tensor) -> Tensor:
        """Maps features (B, C, h, w) to the logits of pixels, (B, channels, height, width)."""
        logits: Tensor = self.layers(y)
        return logits


def similarity(features: Tensor) -> Tensor:
    """Cosine similarity between the centred features of all pairs of a batch.

    Feature maps are reduced to the standard deviation of each channel over the image first
    (Nøkland & Eidnes 2019, "Training neural networks with local error signals", and their code).

    Args:
        features: (B, C, H, W) or (B, D).

    Returns:
        (B, B), in [-1, 1].
    """
    flat = features.flatten(2).std(dim=2) if features.dim() > 2 else features
    centred = flat - flat.mean(dim=1, keepdim=True)
    # Their code's epsilon; it keeps constant features, of no direction, at similarity zero.
    unit = centred / (1e-8 + centred.square().sum(dim=1, keepdim=True).sqrt())
    return (unit @ unit.T).clamp(-1, 1)


class Classification(nn.Module):
    """Cross-entropy of an auxiliary classifier: decoupled greedy learning (DGL)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, y: Tensor, _image: Tensor, target: Tensor) -> Tensor:
        """The loss of features (B, C, ...) for labels (B,)."""
        return F.cross_entropy(self.head(y), target)


class InfoPro(nn.Module):
    """``weight_x BCE(decoder(y), image) + weight_y CE(head(y), target)`` (Wang et al. 2021).

    Args:
        head: classifier.
        decoder: see `Decoder`.
        weight_x: lambda_x of the reconstruction.
        weight_y: lambda_y of the classification.
    """

    def __init__(
        self, head: nn.Module, decoder: nn.Module, weight_x: float, weight_y: float
    ) -> None:
        super().__init__()
        self.head = head
        self.decoder = decoder
        self.weight_x = weight_x
        self.weight_y = weight_y

    def forward(self, y: Tensor, image: Tensor, target: Tensor) -> Tensor:
        """The loss of features (B, C, H, W) for images with pixels in [0, 1] and labels (B,)."""
        painting = F.binary_cross_entropy_with_logits(self.decoder(y), image)
        return self.weight_x * painting + self.weight_y * F.cross_entropy(self.head(y), target)


class PredSim(nn.Module):
    """``(1 - beta) CE(linear(pool(y)), target) + beta |S(conv(y)) - S(onehot)|^2``.

    S is `similarity`; the square is a mean over pairs (Nøkland & Eidnes 2019, equations 1 to 4).

    Args:
        shape: of one example's features, (C, H, W) or (C,).
        classes: number of classes.
        beta: share of the similarity term, in [0, 1]; 0.99 in their paper.
    """

    @checked
    def __init__(self, shape: Sequence[int], classes: Count, beta: Probability = 0.99) -> None:
        super().__init__()
        channels = shape[0]
        self.head = auxiliary_head("0c1f", shape, classes, widest=channels)
        self.embed = (
            conv3x3(channels, channels) if len(shape) == 3 else nn.Linear(channels, channels)
        )
        self.classes = classes
        self.beta = beta

    def forward(self, y: Tensor, _image: Tensor, target: Tensor) -> Tensor:
        """The loss of features (B, C, ...) for labels (B,)."""
        labels = F.one_hot(target, self.classes).to(y.dtype)
        alike = F.mse_loss(similarity(self.embed(y)), similarity(labels))
        return (1 - self.beta) * F.cross_entropy(self.head(y), target) + self.beta * alike


def unit_range(image: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Undoes the normalisation of images, so that pixels lie in [0, 1].

    Args:
        image: (B, C, H, W), ``(pixel - mean) / std``.
        mean: (C, 1, 1) on the scale 0 to 1; None to stretch the batch's own range to [0, 1].
        std: likewise.
    """
    if mean is None or std is None:
        low, high = torch.aminmax(image)
        return (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    return (image * std + mean).clamp(0, 1)  # rounding may step out by one part in 10^7
