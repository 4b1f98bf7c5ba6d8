"""The network: encoder with messengers, discriminator, decoder, up-sampler, tail, refinement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Fraction, Natural, checked
from repro.methods.viws_net.adversary import WeatherDiscriminator
from repro.methods.viws_net.shift import LONG_SHORT, TemporalShift
from repro.models.parts.maps import UpSampler
from repro.models.parts.queries import QueryDecoder
from repro.models.vision.shunted import ShuntedTransformer

Weights = Callable[[ShuntedTransformer], None]


class Restored(NamedTuple):
    """What becomes of clips.

    Attributes:
        centre: (B, 3, H, W), the centre frames as they should be; not clamped.
        pixels: (B, T, C), the deepest maps of the encoder, meant over space; None without encoder.
        tokens: (B, T, C), its messengers, meant over them; None without messengers.
    """

    centre: Tensor
    pixels: Tensor | None = None
    tokens: Tensor | None = None


def restoration_loss(centre_B3HW: Tensor, clean_B3HW: Tensor) -> Tensor:
    """Smooth L1: half the squared error below 1, then the absolute error less a half."""
    return F.smooth_l1_loss(centre_B3HW, clean_B3HW)


class Tail(nn.Module):
    """Three 3-D convolutions without biases; time is padded by repeating, space by zeros.

    Args:
        width: channels between them.
        kernel: frames that a convolution looks at, 1 or 3.
        residual: adds the input to the output.
    """

    def __init__(self, width: int, kernel: int, residual: bool) -> None:
        super().__init__()
        channels = [3, width, width, 3]
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, (kernel, 3, 3), padding=(0, 1, 1), bias=False)
            for a, b in pairwise(channels)
        )
        self.reach, self.residual = kernel // 2, residual

    def forward(self, x_B3THW: Tensor) -> Tensor:
        """Frames of the same shape."""
        x = x_B3THW
        for number, conv in enumerate(self.convs):
            x = F.relu(x) if number else x
            x = conv(F.pad(x, (0, 0, 0, 0, self.reach, self.reach), mode="replicate"))
        return x_B3THW + x if self.residual else x


class Refiner(nn.Module):
    """RefineNet: a second, smaller encoder with messengers of its own, and an up-sampler.

    Args:
        encoder: arguments of `ShuntedTransformer`.
        messengers: M.
        last: channels of the up-sampler at stride 2 and at full size.
    """

    def __init__(self, encoder: Mapping[str, Any], messengers: int, last: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = ShuntedTransformer(**encoder)
        self.messengers = new_messengers(messengers)
        self.up = UpSampler(self.encoder.widths, last, from_below=False)
        self.out = nn.Conv2d(last[1], 3, 3, padding=1)

    def forward(self, x_N3HW: Tensor, shift: TemporalShift) -> Tensor:
        """Frames of the same shape."""
        maps, _ = self.encoder(x_N3HW, self.messengers.expand(len(x_N3HW), -1, -1), shift)
        return x_N3HW + torch.tanh(self.out(self.up(maps)))


class ViWSNet(nn.Module):
    """Maps clips (B, T, 3, H, W) in [0, 1] to `Restored`; the published sizes by default.

    Parts that two networks have in common begin with the same weights, if the random seed was the
    same: each is drawn by itself.

    Args:
        encoder: arguments of `ShuntedTransformer`.
        refiner: the same for RefineNet's; None: three convolutions refine the centre frame.
        messengers: M tokens; 0: none, and the decoder has queries of its own.
        queries: that each block of the decoder learns where there are no messengers.
        shift: where messengers go between blocks, see `TemporalShift`.
        shifts: by how many frames, group by group.
        decoder_depth: blocks of the decoder.
        decoder_heads: of their attention.
        decoder_drop_path: rates by block.
        last: channels of the up-samplers at stride 2 and at full size.
        tail_width: channels within the 3-D convolutions.
        tail_kernel: frames that each of them looks at.
        tail_residual: adds their input to their output; the published network does not.
        refine_width: channels of the three convolutions, where they are the refinement.
        weathers: that the discriminator tells apart.
        attention_width: of its gated attention.
        frames: ``all``, or ``centre``: the centre frame in the place of every frame, a control.
        weights: fills the encoder with weights trained before; None: fresh.
        refiner_weights: likewise RefineNet's.

    Raises:
        UserError: messengers that the shifts' groups do not divide.
    """

    @checked
    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        refiner: Mapping[str, Any] | None = None,
        messengers: Natural = 48,
        queries: Count = 48,
        shift: Literal["time", "clip", "none"] = "time",
        shifts: Sequence[int] = LONG_SHORT,
        decoder_depth: Count = 3,
        decoder_heads: Count = 8,
        decoder_drop_path: Sequence[Fraction] = (),
        last: Sequence[Count] = (16, 8),
        tail_width: Count = 32,
        tail_kernel: Literal[1, 3] = 3,
        tail_residual: bool = False,
        refine_width: Count = 16,
        weathers: Count = 3,
        attention_width: Count = 128,
        frames: Literal["all", "centre"] = "all",
        weights: Weights | None = None,
        refiner_weights: Weights | None = None,
    ) -> None:
        super().__init__()
        if shift != "none" and messengers % len(shifts):
            raise UserError(
                f"viws_net: {messengers} messengers do not make {len(shifts)} equal groups; choose"
                " a multiple, or other shifts."
            )
        self.shift, self.shifts, self.frames = shift, list(shifts), frames
        sizes = last[0], last[1]
        with _drawn_apart(0):
            self.encoder = ShuntedTransformer(**(encoder or {}))
        width = self.encoder.widths[-1]
        with _drawn_apart(1):
            self.messengers = new_messengers(messengers)
        with _drawn_apart(2):
            learned = 0 if messengers else queries
            self.decoder = QueryDecoder(
                width, decoder_depth, decoder_heads, 4.0, decoder_drop_path, learned
            )
        with _drawn_apart(3):
            self.up = UpSampler(self.encoder.widths, sizes, from_below=True)
            self.out = nn.Conv2d(sizes[1], 3, 3, padding=1)
        with _drawn_apart(4):
            self.discriminator = WeatherDiscriminator(width, weathers, attention_width)
        with _drawn_apart(5):
            self.refine = (
                _three_convs(refine_width)
                if refiner is None
                else Refiner(refiner, messengers, sizes)
            )
        with _drawn_apart(6):
            self.tail = Tail(tail_width, tail_kernel, tail_residual)
        if weights is not None:
            weights(self.encoder)
        if refiner_weights is not None and isinstance(self.refine, Refiner):
            refiner_weights(self.refine.encoder)

    def forward(self, clips_BT3HW: Tensor) -> Restored:
        """The restored centre frames, and features to ask for the weather.

        Args:
            clips_BT3HW: T odd; H and W multiples of the encoder's deepest stride.
        """
        B, T = clips_BT3HW.shape[:2]
        if self.frames == "centre":
            clips_BT3HW = clips_BT3HW[:, T // 2, None].expand(-1, T, -1, -1, -1)
        shift = TemporalShift(T, self.shifts, self.shift)
        frames_N3HW = clips_BT3HW.flatten(0, 1)
        maps, tokens = self.encoder(frames_N3HW, self.messengers.expand(B * T, -1, -1), shift)
        below = self.decoder(maps[-1], tokens)
        residual = torch.tanh(self.out(self.up(maps, below)))
        first_B3THW = self.tail((frames_N3HW - residual).unflatten(0, (B, T)).transpose(1, 2))
        return Restored(
            self._refined(first_B3THW, shift),
            maps[-1].mean((2, 3)).unflatten(0, (B, T)),
            tokens.mean(1).unflatten(0, (B, T)) if tokens.shape[1] else None,
        )

    def _refined(self, first_B3THW: Tensor, shift: TemporalShift) -> Tensor:
        B, _, T = first_B3THW.shape[:3]
        if isinstance(self.refine, Refiner):  # whose messengers couple all frames
            refined = self.refine(first_B3THW.transpose(1, 2).flatten(0, 1), shift)
            centre: Tensor = refined.unflatten(0, (B, T))[:, T // 2]
            return centre
        centre = first_B3THW[:, :, T // 2]
        return centre + self.refine(centre)


def new_messengers(count: int) -> nn.Parameter:
    """(1, M, 3): colours of constant images, from N(0, 0.02), the same for all frames."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, 3), std=0.02))


def _three_convs(width: int) -> nn.Sequential:
    channels = [3, width, width, 3]
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@contextlib.contextmanager
def _drawn_apart(number: int) -> Iterator[None]:
    """Random numbers that depend on the seed and on this number, not on what was drawn before."""
    seed = torch.initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((1_000_003 * seed + number) % 2**63)
        yield
