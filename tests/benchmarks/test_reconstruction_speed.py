"""The parts of `repro.toolbox.reconstruction` against the loops that they replace."""

from __future__ import annotations

from functools import partial

import torch
from timing import faster

from repro.toolbox.reconstruction import fit_grid


def test_one_search_for_all_channels_against_one_for_each() -> None:
    weight = torch.randn(512, 256)
    ours = partial(fit_grid, weight, 4)
    faster("ranges of 512 channels", ours, lambda: [fit_grid(row[None], 4) for row in weight], 5, 1)
