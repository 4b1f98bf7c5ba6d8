"""Photographs that come with scikit-learn and scikit-image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repro.data.base.files import INSTALL
from repro.errors import UserError

FROM_SKLEARN = ("china", "flower")


def photograph(name: str) -> Tensor:
    """A bundled photograph, (3, H, W) in [0, 1]; a grey one three times, of a stereo pair the left.

    Args:
        name: ``china`` or ``flower``, or a function of `skimage.data`.

    Raises:
        UserError: Pillow or scikit-image is not installed.
    """
    try:
        if name in FROM_SKLEARN:
            from sklearn.datasets import load_sample_image

            picture = load_sample_image(f"{name}.jpg")
        else:
            from skimage import data

            picture = getattr(data, name)()
    except ImportError as error:
        raise UserError(f"Bundled photographs need Pillow and scikit-image: {INSTALL}") from error
    x = torch.from_numpy(np.array(picture[0] if isinstance(picture, tuple) else picture)) / 255
    x = x[..., None].expand(-1, -1, 3) if x.dim() == 2 else x[..., :3]
    return x.permute(2, 0, 1)
