"""A network as a chain of pieces, for methods that train or inspect it piece by piece."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Chain(NamedTuple):
    """The pieces of a network; running them one after another is its ``forward``.

    The pieces share the network's parameters and buffers. Models that can be taken apart offer a
    method ``chain()`` that returns one of these.

    Attributes:
        stem: maps the input to the first unit's input.
        units: what is repeated (residual blocks, hidden layers), in order.
        stages: for each unit the number of its stage, from 1; units of a stage share their width.
        head: maps the last unit's output to logits; its last linear layer has a row for each class.
    """

    stem: nn.Module
    units: list[nn.Module]
    stages: list[int]
    head: nn.Module


def staged(*stages: nn.Module) -> tuple[list[nn.Module], list[int]]:
    """The units of several stages in a row, and the number of the stage each one belongs to."""
    numbered = [
        (unit, number) for number, stage in enumerate(stages, 1) for unit in stage.children()
    ]
    return [unit for unit, _ in numbered], [number for _, number in numbered]
