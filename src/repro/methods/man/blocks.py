"""Where a network is cut into gradient-isolated blocks, and what each block's loss weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from repro.errors import UserError
from repro.knobs import checked


def block_ends(
    units: int, modules: int | None = None, borders: Sequence[int] | None = None
) -> list[int]:
    """The index of the last unit of each block.

    The stem counts as one more piece before the units; the ``units + 1`` pieces are cut into
    ``modules`` groups of (nearly) equal length, and a group of the stem alone joins the next one.
    So ``modules = units + 1``, what the paper calls K = 16 for ResNet-32 and K = 55 for ResNet-110,
    makes every unit a block (15 and 54 of them). For ResNet-32 the rule gives the official splits
    at K = 2, 4, 8 and 16; other official splits are not even and are given as ``borders``.

    Args:
        units: N, how many units the network has.
        modules: the paper's K in [1, N + 1]; 1 is end-to-end training. None: N + 1.
        borders: the last unit of every block but the last one, rising, in [0, N - 2]; replaces
            the rule.

    Returns:
        Rising indices; the last is N - 1.

    Raises:
        UserError: the network cannot be cut so.
    """
    if units < 1:
        raise UserError("Local learning cuts a network between its units, but this one has none.")
    if borders is not None:
        ends = [*borders, units - 1]
        if ends != sorted(set(ends)) or ends[0] < 0:
            raise UserError(
                f"method.borders are rising unit numbers between 0 and {units - 2} for a network of"
                f" {units} units, not {list(borders)}."
            )
        return ends
    modules = units + 1 if modules is None else modules
    if not 1 <= modules <= units + 1:
        raise UserError(
            f"method.modules lies between 1 and {units + 1} for a network of {units} units and a"
            f" stem, not {modules}."
        )
    # Piece p is unit p - 1, and group j ends before piece floor(j (N + 1) / K).
    ends = [(group * (units + 1)) // modules - 2 for group in range(1, modules + 1)]
    return [end for end in ends if end >= 0]


@checked
def loss_weight(
    block: int,
    stage: int,
    modules: int,
    first: float,
    last: float,
    schedule: Literal["linear", "official_quirk"] = "linear",
) -> float:
    """The weight (lambda) of one term of a block's loss.

    ``linear`` runs from ``first`` at block 1 to ``last`` at block K - 1, as the InfoPro paper has
    it. The official MAN code indexes by the *stage* of the next unit instead (``official_quirk``),
    which makes weights almost constant at K = 16 and negative for ``last = 0`` at K = 3 and 4.

    Args:
        block: number of the block, from 1.
        stage: stage of the first unit of the next block, from 1.
        modules: the paper's K.
        first: weight at block 1.
        last: weight at block K - 1.
        schedule: which of the two.
    """
    if modules <= 2:
        return first
    ratio = ((block - 1) if schedule == "linear" else stage) / (modules - 2)
    return first * (1 - ratio) + last * ratio
