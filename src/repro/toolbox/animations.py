"""Animated previews of videos, as GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repro.knobs import Count, checked


@checked
def save_animation(
    frames: Sequence[np.ndarray], file: Path, enlarged: Count = 1, milliseconds: Count = 200
) -> None:
    """Writes pictures one after another, over and over.

    Args:
        frames: each (H, W, 3), bytes.
        file: ends in ``.gif``.
        enlarged: edge of the square that each pixel becomes.
        milliseconds: that a frame is shown.
    """
    from PIL import Image

    square = np.ones((enlarged, enlarged, 1), np.uint8)
    first, *others = (Image.fromarray(np.kron(frame, square)) for frame in frames)
    first.save(file, save_all=True, append_images=others, duration=milliseconds, loop=0)
