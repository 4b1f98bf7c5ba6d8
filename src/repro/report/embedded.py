"""Pictures within a page: decoded and written anew, small, so that nothing else comes with them."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Where lines and letters are still sharp; AVIF takes two thirds of WebP's bytes for it.
AVIF_QUALITY, WEBP_QUALITY = 42, 52
NARROWEST = 0.5  # of the width wanted, where letters can still be read


@dataclass(frozen=True)
class Embedded:
    """A picture as a data URI.

    Attributes:
        name: of its file, without suffix.
        address: the data URI.
        width: in points.
        height: in points.
    """

    name: str
    address: str
    width: int
    height: int


def embed(file: Path, width: int, most: int) -> Embedded | None:
    """Reads a PNG file; None if it cannot be read as one.

    Args:
        file: the picture.
        width: at most so many points wide.
        most: about so many bytes, if that can be had at half the width.
    """
    from PIL import Image, features  # come with Matplotlib

    try:
        with Image.open(file, formats=["PNG"]) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", picture.size, "white")
    whole = Image.alpha_composite(white, picture).convert("RGB")
    whole.thumbnail((width, 4 * width), Image.Resampling.BICUBIC)
    encoding = "AVIF" if features.check("avif") else "WEBP"  # Pillow has AVIF since 11.3
    content = _encoded(whole, encoding)
    if len(content) > most:
        share = max(NARROWEST, math.sqrt(most / len(content)))
        whole.thumbnail((round(share * whole.width), whole.height), Image.Resampling.BICUBIC)
        content = _encoded(whole, encoding)
    encoded = base64.b64encode(content).decode()
    address = f"data:image/{encoding.lower()};base64,{encoded}"
    return Embedded(file.stem, address, whole.width, whole.height)


def _encoded(picture: Image.Image, encoding: str) -> bytes:
    content = io.BytesIO()
    if encoding == "AVIF":
        picture.save(content, encoding, quality=AVIF_QUALITY, speed=8)
    else:
        picture.save(content, encoding, quality=WEBP_QUALITY, method=2)
    return content.getvalue()
