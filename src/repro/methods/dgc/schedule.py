"""Warm-up of the density: send much in the first epochs, then the target ratio."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from repro.errors import UserError
from repro.knobs import Natural, Share, checked

Densities = Literal["paper", "official", "dense"] | Sequence[Share]


@checked
def density_schedule(
    ratio: Share, warmup_epochs: Natural = 4, warmup_densities: Densities = "paper"
) -> list[float]:
    """Returns the density of every warm-up epoch, followed by the target density.

    The density of epoch ``e`` is ``schedule[min(e, len(schedule) - 1)]``.

    Args:
        ratio: target density r, in (0, 1].
        warmup_epochs: number E of warm-up epochs; 0 switches warm-up off.
        warmup_densities: one value per warm-up epoch, or the name of a preset:

            * ``paper``: ``max(4^-(e+1), r)``, i.e. sparsity 75 %, 93.75 %, 98.4375 %, 99.6 %
              (Lin et al., section 3.3, "Warm-up training");
            * ``official``: ``max(r^((e+1)/(E+1)), r)``, what the authors' released code computes
              (its README quotes the paper's values instead);
            * ``dense``: 1, no compression during warm-up.

    Returns:
        Densities in (0, 1].

    Raises:
        UserError: a value is out of range, the list is shorter than the warm-up, or a dense epoch
            (density 1) comes after a compressed one, when each worker already keeps a memory of
            its own that a dense exchange would have to abandon.
    """
    epochs = range(warmup_epochs)
    if warmup_densities == "paper":
        warmup = [max(4.0 ** -(e + 1), ratio) for e in epochs]
    elif warmup_densities == "official":
        factor = ratio ** (1 / (warmup_epochs + 1))  # powers of it, to the authors' last bit
        warmup = [max(factor ** (e + 1), ratio) for e in epochs]
    elif warmup_densities == "dense":
        warmup = [1.0 for _ in epochs]
    else:
        warmup = [float(density) for density in warmup_densities][:warmup_epochs]
        if len(warmup) < warmup_epochs:
            raise UserError(
                f"method.warmup_densities lists {len(warmup)} values for "
                f"{warmup_epochs} warm-up epochs; give one value per epoch."
            )
    schedule = [*warmup, ratio]
    if any(after == 1 > before for before, after in pairwise(schedule)):
        raise UserError(
            f"A dense epoch cannot follow a compressed one, but the densities are {schedule}."
        )
    return schedule
