"""What is not a network of clips, in the place of one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from repro.knobs import checked
from repro.methods.viws_net.network import Restored


class FrameFilter(nn.Module):
    """Has nothing to learn: the centre frame as it came, or each pixel's median over the frames.

    Args:
        kind: ``input`` | ``median``.
    """

    @checked
    def __init__(self, kind: Literal["input", "median"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, clips_BT3HW: Tensor) -> Restored:
        """See `Restored`; T is odd."""
        if self.kind == "median":
            return Restored(clips_BT3HW.median(1).values)
        return Restored(clips_BT3HW[:, clips_BT3HW.shape[1] // 2])


class FrameWise(nn.Module):
    """A network for single images, on the centre frame.

    Args:
        network: maps (B, 3, H, W) to the same.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips_BT3HW: Tensor) -> Restored:
        """See `Restored`."""
        return Restored(self.network(clips_BT3HW[:, clips_BT3HW.shape[1] // 2]))
