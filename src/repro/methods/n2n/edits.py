"""What a policy may do to an architecture: remove layers (stage 1), shrink them (stage 2).

An edit is a set of rules without state. Its actions are a table of whole numbers, a row for each
layer that `rows` lists; `free` says which entries change anything, and `identity` is the action
that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Ge
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Share, checked
from repro.methods.n2n.architecture import Architecture, Block, Layer, Row, rows

Variable = Literal["kind", "kernel", "stride", "padding", "outputs"]
SMALLEST = {"kernel": 1, "stride": 1, "padding": 0}


class Edit(Protocol):
    """`Removal` or `Shrinkage`."""

    @property
    def choices(self) -> int:
        """How many actions there are for an entry."""

    @property
    def identity(self) -> int:
        """The action that changes nothing."""

    def free(self, architecture: Architecture) -> Tensor:
        """Which entries of the table change anything: bool, of the table's shape."""

    def apply(self, architecture: Architecture, actions: Tensor) -> Architecture:
        """The architecture after a table of actions."""


@checked
@dataclass(frozen=True)
class Removal:
    """Removes layers; a table has one column: 0 removes, 1 keeps.

    Always kept are the first layer, the last one, layers of the kinds in `keep`, convolutions with
    a stride, and projections.

    Args:
        keep: kinds of layers that stay; released: linear and avg_pool.
        shifted_rows: as in the released code, a layer behind the k-th projection is decided by the
            entry 2k rows before its own, because projections take none.
        doubled: see `repro.methods.n2n.architecture.Block`.
    """

    keep: Sequence[str] = ("linear", "avg_pool")
    shifted_rows: bool = False
    doubled: bool = False

    choices = 2
    identity = 1

    def free(self, architecture: Architecture) -> Tensor:
        """(T,) bool."""
        acted = _acted(architecture)
        free = torch.zeros(len(rows(architecture)), dtype=torch.bool)
        for (index, row), decided_by in zip(acted, self._deciding(acted), strict=True):
            first_or_last = index in (acted[0][0], acted[-1][0])
            strided = row.layer.kind == "conv" and row.layer.stride > 1
            free[decided_by] = not (first_or_last or strided or row.layer.kind in self.keep)
        return free

    def apply(self, architecture: Architecture, actions: Tensor) -> Architecture:
        """The architecture without what a table (T,) removes."""
        acted = _acted(architecture)
        removes = (self.free(architecture) & (actions == 0)).tolist()
        gone = {
            (row.part, row.place)
            for (_, row), decided_by in zip(acted, self._deciding(acted), strict=True)
            if removes[decided_by]
        }
        parts = (self._left(index, part, gone) for index, part in enumerate(architecture))
        return tuple(part for part in parts if part is not None)

    def _deciding(self, acted: list[tuple[int, Row]]) -> list[int]:
        """The row of the table that decides each layer."""
        return [place if self.shifted_rows else index for place, (index, _) in enumerate(acted)]

    def _left(
        self, index: int, part: Layer | Block, gone: set[tuple[int, int]]
    ) -> Layer | Block | None:
        if isinstance(part, Layer):
            return None if (index, 0) in gone else part
        body = tuple(each for place, each in enumerate(part.body) if (index, place) not in gone)
        return replace(part, body=body, doubled=self.doubled)


@checked
@dataclass(frozen=True)
class Shrinkage:
    """Multiplies what layers are configured by; a table has a column for each variable.

    Left alone are the last layer, kinds in `keep`, convolutions with a stride outside blocks, and
    in blocks all but widths. The last convolution of a block follows its projection, and both the
    convolution's own entry; without a projection it has the width of the block's input.

    Args:
        factors: what an action multiplies by; one of them is 1.
        variables: that have an entry, in the order of their decisions; ``kind`` is the released
            code's entry that changes nothing.
        least_width: no number of outputs goes below this, unless it is there already.
        keep: kinds of layers that are left alone.
        shifted_rows: as in the released code, the first convolution of a block follows the entry of
            the block's last row.
    """

    factors: Sequence[Share] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    variables: Sequence[Variable] = ("kernel", "stride", "padding", "outputs")
    least_width: Annotated[int, Ge(1)] = 10
    keep: Sequence[str] = ("linear", "avg_pool")
    shifted_rows: bool = False

    def __post_init__(self) -> None:
        if 1.0 not in self.factors:
            raise UserError("Shrinkage.factors holds 1.0, which changes nothing: add it.")

    @property
    def choices(self) -> int:
        """The number of factors."""
        return len(self.factors)

    @property
    def identity(self) -> int:
        """The index of the factor 1."""
        return list(self.factors).index(1.0)

    def free(self, architecture: Architecture) -> Tensor:
        """(T, V) bool."""
        table = rows(architecture)
        free = torch.zeros(len(table), len(self.variables), dtype=torch.bool)
        for index, row in enumerate(table[:-1]):
            for column, variable in enumerate(self.variables):
                free[self._deciding(table, index), column] |= self._changes(
                    row, variable, architecture
                )
        return free

    def apply(self, architecture: Architecture, actions: Tensor) -> Architecture:
        """The architecture after a table (T, V) of indices of factors."""
        table = rows(architecture)
        factors = torch.tensor(list(self.factors), dtype=torch.float64)[actions].tolist()
        shrunk: dict[tuple[int, int], Layer] = {}
        for index, row in enumerate(table[:-1]):
            changes: dict[str, Any] = {
                variable: self.shrunk(getattr(row.layer, variable), variable, factor)
                for variable, factor in zip(
                    self.variables, factors[self._deciding(table, index)], strict=True
                )
                if self._changes(row, variable, architecture)
            }
            if changes:
                shrunk[row.part, row.place] = replace(row.layer, **changes)
        return _replaced(architecture, shrunk)

    def shrunk(self, value: int, variable: Variable, factor: float) -> int:
        """A value after a factor, rounded down and not below what is possible."""
        least = self.least_width if variable == "outputs" else SMALLEST[variable]
        return min(value, max(int(value * factor + 1e-9), least))

    def _deciding(self, table: list[Row], index: int) -> int:
        """The row of the table that decides a layer."""
        row = table[index]
        return index + row.to_end if self.shifted_rows and row.in_block and not row.place else index

    def _changes(self, row: Row, variable: Variable, architecture: Architecture) -> bool:
        """Whether an entry changes a layer at all."""
        layer = row.layer
        strided = layer.kind == "conv" and layer.stride > 1
        if variable == "kind" or layer.kind in self.keep or (strided and not row.in_block):
            return False
        if row.in_block and not _has_own_width(row, variable, architecture):
            return False
        return self.shrunk(getattr(layer, variable), variable, 0.0) < getattr(layer, variable)


def _has_own_width(row: Row, variable: Variable, architecture: Architecture) -> bool:
    """Whether a layer of a block has a width that is not its input's."""
    block = architecture[row.part]
    assert isinstance(block, Block)
    if variable != "outputs" or row.in_shortcut or row.layer.kind != "conv":
        return False
    last = max(place for place, each in enumerate(block.body) if each.kind == "conv")
    return row.place != last or bool(block.shortcut)


def _acted(architecture: Architecture) -> list[tuple[int, Row]]:
    """The rows that something may be done to, projections left out, with their numbers."""
    return [(index, row) for index, row in enumerate(rows(architecture)) if not row.in_shortcut]


def _replaced(architecture: Architecture, new: dict[tuple[int, int], Layer]) -> Architecture:
    """The architecture with some layers replaced, and blocks that end in the widths they need.

    The width that arrives at a block without a projection is that of the last convolution before.
    """
    parts: list[Layer | Block] = []
    width = 0
    for index, part in enumerate(architecture):
        if isinstance(part, Layer):
            layer = new.get((index, 0), part)
            width = layer.outputs or width
            parts.append(layer)
            continue
        body = [new.get((index, place), each) for place, each in enumerate(part.body)]
        convs = [place for place, each in enumerate(body) if each.kind == "conv"]
        if part.shortcut:
            last = body[convs[-1]] if convs else part.shortcut[0]
            width = last.outputs
        elif convs:
            body[convs[-1]] = replace(body[convs[-1]], outputs=width)
        shortcut = _of_width(part.shortcut, width)
        parts.append(replace(part, body=tuple(body), shortcut=shortcut))
    return tuple(parts)


def _of_width(layers: tuple[Layer, ...], width: int) -> tuple[Layer, ...]:
    return tuple(replace(each, outputs=width) if each.outputs else each for each in layers)


def map_widths(architecture: Architecture, resize: Callable[[int], int]) -> Architecture:
    """The architecture with every width that is nobody else's resized, but the last layer's."""
    new = {
        (row.part, row.place): replace(row.layer, outputs=resize(row.layer.outputs))
        for row in rows(architecture)[:-1]
        if row.layer.outputs and (not row.in_block or _has_own_width(row, "outputs", architecture))
    }
    return _replaced(architecture, new)
