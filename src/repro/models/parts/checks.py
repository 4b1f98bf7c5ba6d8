"""Checks of the sizes a model is built with: a wrong one is one clear line."""

from __future__ import annotations

from collections.abc import Sequence

from repro.errors import UserError


def require_positive(model: str, **sizes: int) -> None:
    """Checks that every named size is a whole number above zero.

    Raises:
        UserError: names the model and the first size that is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{model}: {name} must be a whole number of at least 1, got {size!r}.")


def require_probability(model: str, **rates: float) -> None:
    """Checks that every named rate lies in [0, 1).

    Raises:
        UserError: names the model and the first rate that does not.
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"{model}: {name} must lie in [0, 1), got {rate!r}.")


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
    require_positive(model, channels=channels, height=height, width=width)
    if min(height, width) < smallest:
        raise UserError(
            f"{model}: needs images of at least {smallest}x{smallest} pixels, got {height}x{width}."
        )
    return channels, height, width
