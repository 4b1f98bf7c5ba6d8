"""The network of ScaleLong's theory: a UNet of two-layer ReLU blocks on vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.models.parts.skips import Merge, MergeKind, PlainSkips, sinusoidal


class SkipMLP(nn.Module):
    """Predicts noise: N encoder blocks, a middle one, N decoder blocks with long skips between.

    Every block is ``W2 relu(W1 z + b1) + b2`` with W1 ~ N(0, 2/m), W2 ~ N(0, 1/m) and zero biases.
    So it keeps the expected squared norm, and as it ends in a linear layer, its output has no
    preferred direction. Maps (B, *input_shape) and times (B,) to noise (B, *input_shape).

    Args:
        input_shape: of one example; flattened.
        n_skips: N.
        width: m.
        time_width: of the sinusoidal embedding of the time, an even number.
        merge: ``add`` (the theory) or ``concat``.

    Raises:
        UserError: a size below 1, or an unknown merge.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        n_skips: Count = 8,
        width: Count = 128,
        time_width: Count = 32,
        merge: MergeKind = "add",
    ) -> None:
        super().__init__()
        self.sizes = {
            "input_shape": list(input_shape),
            "n_skips": n_skips,
            "width": width,
            "time_width": time_width,
            "merge": merge,
        }
        self.time_width = time_width
        size = math.prod(input_shape)
        self.stem = nn.Linear(size, width)
        self.time_stem = nn.Linear(time_width, width)
        self.encoder = nn.ModuleList(_block(width) for _ in range(n_skips))
        self.middle = _block(width)
        self.decoder = nn.ModuleList(_block(width) for _ in range(n_skips))
        self.merges = nn.ModuleList(Merge(merge, width) for _ in range(n_skips))
        self.head = nn.Linear(width, size)
        self.skip_features = [width] * n_skips  # in decoder order
        self.scaler: nn.Module = PlainSkips()

    def with_skips(self, n_skips: int) -> SkipMLP:
        """A new, freshly initialised network like this one, but of another depth."""
        return SkipMLP(**self.sizes | {"n_skips": n_skips})  # type: ignore[arg-type]

    def embed(self, x: Tensor, time_B: Tensor) -> Tensor:
        """z_0 (B, m) of noised examples (B, …) at times (B,)."""
        embedded: Tensor = self.stem(x.flatten(1))
        return embedded + self.time_stem(sinusoidal(time_B, self.time_width))

    def body(self, z: Tensor) -> Tensor:
        """h_0 (B, m) of z_0 (B, m): what the theory speaks of."""
        skips = []
        for block in self.encoder:
            z = block(z)
            skips.append(z)
        h: Tensor = self.middle(z)
        for j, (merge, block) in enumerate(zip(self.merges, self.decoder, strict=True)):
            h = block(merge(h, self.scaler(skips.pop(), j)))
        return h

    def forward(self, x: Tensor, time_B: Tensor) -> Tensor:
        """The predicted noise, of the shape of ``x``."""
        noise: Tensor = self.head(self.body(self.embed(x, time_B)))
        return noise.view_as(x)


def _block(width: int) -> nn.Sequential:
    first, last = nn.Linear(width, width), nn.Linear(width, width)
    nn.init.normal_(first.weight, std=math.sqrt(2 / width))
    nn.init.normal_(last.weight, std=math.sqrt(1 / width))
    nn.init.zeros_(first.bias)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.ReLU(), last)
