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

QUALITY = 52  # of WebP, where lines and letters are still sharp
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
    from PIL import Image  # comes with Matplotlib

    try:
        with Image.open(file, formats=["PNG"]) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", picture.size, "white")
    whole = Image.alpha_composite(white, picture).convert("RGB")
    whole.thumbnail((width, 4 * width), Image.Resampling.BICUBIC)
    content = _encoded(whole)
    if len(content) > most:
        share = max(NARROWEST, math.sqrt(most / len(content)))
        whole.thumbnail((round(share * whole.width), whole.height), Image.Resampling.BICUBIC)
        content = _encoded(whole)
    address = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return Embedded(file.stem, address, whole.width, whole.height)


def _encoded(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=2)
    return content.getvalue()
