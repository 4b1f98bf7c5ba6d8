"""Checks of the shapes a model is built for: a wrong one is one clear line."""

from __future__ import annotations

from collections.abc import Sequence

from repro.errors import UserError


def image_shape(model: str, input_shape: Sequence[int], smallest: int = 1) -> tuple[int, int, int]:
    """Reads ``input_shape`` as (channels, height, width).

    Args:
        model: name for the message.
        input_shape: shape of one image without the batch dimension.
        smallest: least height and width that the model can take in.

    Raises:
        UserError: it is not the shape of one image, or the image is too small.
    """
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise UserError(
            f"{model}: takes images, so input_shape must be (channels, height, width), got {shape}."
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise UserError(
            f"{model}: needs images of at least {smallest}x{smallest} pixels, got {height}x{width}."
        )
    return channels, height, width
