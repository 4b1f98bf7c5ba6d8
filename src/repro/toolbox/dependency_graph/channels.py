"""What belongs to a channel: places in tensors, tied to each other while a graph is walked.

Every axis of a parameter has as many places as its size; an axis of an activation is an array of
the places that its entries stand or fall with. Operations tie places to each other. What is tied is
one channel: a connected component, which `Ties.components` finds once all operations are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Places = NDArray[np.int64]
Role = Literal["producer", "norm", "consumer"]
STRENGTH: dict[Role, int] = {"consumer": 0, "norm": 1, "producer": 2}
PINNED = 0  # the place of entries that are constants: what is tied to it stays


@dataclass
class Axis:
    """One axis of a tensor.

    Attributes:
        places: of its entries; None where no entry can go: a batch, pixels, the network's input.
        zero: whether an entry is zero once its channel's producers and norms are.
    """

    places: Places | None = None
    zero: bool = True


@dataclass
class Value:
    """What is known of a tensor: its shape, its axes, and whether it is (made of) a parameter."""

    shape: tuple[int, ...]
    axes: list[Axis]
    is_parameter: bool = False

    @property
    def followed(self) -> bool:
        """Whether some axis has places."""
        return any(axis.places is not None for axis in self.axes)


def plain(shape: Sequence[int]) -> Value:
    """A tensor without places."""
    return Value(tuple(shape), [Axis() for _ in shape])


@dataclass
class Ties:
    """The places of a network's parameters, and what ties them.

    Attributes:
        starts: the first place of each (parameter or buffer, axis), in the order of their use.
        sizes: and how many it has.
        roles: what each of them does for its channels.
        pairs: arrays of tied places, (2, n).
        pinned: arrays of places that have to stay.
        inexact: arrays of places whose removal is not the same as their being zero.
    """

    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    pairs: list[Places] = field(default_factory=list)
    pinned: list[Places] = field(default_factory=list)
    inexact: list[Places] = field(default_factory=list)
    count: int = 1  # after PINNED

    def parameter(self, name: str, shape: Sequence[int]) -> Value:
        """A parameter, or a buffer: every axis longer than one has places of its own."""
        axes = []
        for dim, size in enumerate(shape):
            if size == 1:
                axes.append(Axis())
                continue
            if (name, dim) not in self.starts:
                self.starts[name, dim], self.sizes[name, dim] = self.count, size
                self.count += size
            start = self.starts[name, dim]
            axes.append(Axis(np.arange(start, start + size)))
        return Value(tuple(shape), axes, is_parameter=True)

    def play(self, axis: Axis, role: Role) -> None:
        """Says what the parameters whose axis this is do for its channels; the strongest counts."""
        if axis.places is None:
            return
        keys = list(self.starts)
        used = np.searchsorted(list(self.starts.values()), axis.places, side="right") - 1
        for key in (keys[number] for number in np.unique(used) if number >= 0):
            if STRENGTH[role] >= STRENGTH[self.roles.get(key, "consumer")]:
                self.roles[key] = role

    def tie(self, one: Places, other: Places) -> None:
        """Makes entries of two arrays of equal length channels in common."""
        self.pairs.append(np.stack([one, other]))

    def pin(self, axis: Axis) -> None:
        """Keeps all of an axis."""
        if axis.places is not None:
            self.pinned.append(axis.places)

    def pin_all(self, *values: Value) -> None:
        """Keeps everything of some tensors."""
        for value in values:
            for axis in value.axes:
                self.pin(axis)

    def blur(self, axis: Axis) -> None:
        """Notes that removing from an axis is not the same as zeros in it."""
        if axis.places is not None:
            self.inexact.append(axis.places)

    def join(self, one: Axis, other: Axis, size_one: int, size_other: int) -> Places | None:
        """The places of two axes that an operation aligns, of which one may be stretched."""
        if one.places is not None and other.places is not None:
            self.tie(one.places, other.places)
            return one.places
        if one.places is None and other.places is None:
            return None
        followed, size = (one, size_other) if other.places is None else (other, size_one)
        if size != 1:  # a tensor that cannot lose entries
            self.pin(followed)
        return followed.places

    def components(self) -> NDArray[np.int64]:
        """The number of the channel of every place."""
        links = np.concatenate([np.zeros((2, 1), np.int64), *self.pairs], axis=1)
        graph = coo_array((np.ones(links.shape[1]), (links[0], links[1])), (self.count,) * 2)
        _, numbers = connected_components(graph, directed=False)
        return numbers.astype(np.int64)
