"""What workers remember between steps: error feedback, velocity, and ordinary momentum.

Shapes: K rows (one per worker), n entries of one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from repro.internals import foreach_add_, foreach_copy_, foreach_mul_
from repro.knobs import Fraction, checked

_PIECE = 1 << 17  # entries of U, V and g that stay in cache together
MemoryMode = Literal["gradient", "velocity", "nesterov"]


class ErrorFeedbackMemory:
    """The local accumulators U (velocity) and V (unsent) of Lin et al., algorithm 4.

    Modes, for an incoming gradient g:

    * ``gradient``: ``V += g`` (error feedback alone; Aji & Heafield 2017);
    * ``velocity``: ``U = m U + g ; V += U`` (momentum correction);
    * ``nesterov``: ``U = m (U + g) ; V += U + g`` (the authors' code).

    State tensors have shape [K, n] and appear, as zeros, when a name is first seen.

    Args:
        mode: what V accumulates.
        momentum: m, in [0, 1); not used by ``gradient``.
        masking: whether `release` resets U too (momentum factor masking), or V alone.
    """

    @checked
    def __init__(
        self, mode: MemoryMode = "velocity", momentum: Fraction = 0.9, masking: bool = True
    ) -> None:
        self.mode = mode
        self.momentum = momentum
        self.masking = masking
        self.velocity: dict[str, Tensor] = {}
        self.unsent: dict[str, Tensor] = {}

    def accumulate(self, names: Sequence[str], grads_Kn: Sequence[Tensor]) -> list[Tensor]:
        """Adds one step's gradients.

        Args:
            names: one per tensor.
            grads_Kn: gradients, each of shape [K, n]; read only.

        Returns:
            The accumulators V themselves (not copies), each of shape [K, n].
        """
        unsent_Kn = [_slot(self.unsent, n, g) for n, g in zip(names, grads_Kn, strict=True)]
        if self.mode == "gradient":
            foreach_add_(unsent_Kn, list(grads_Kn))
            return unsent_Kn
        velocity_Kn = [_slot(self.velocity, n, g) for n, g in zip(names, grads_Kn, strict=True)]
        whole_Kn = [g.contiguous() for g in grads_Kn]
        for unsent, velocity, grads in _cached(unsent_Kn, velocity_Kn, whole_Kn):
            if self.mode == "nesterov":
                foreach_add_(velocity, grads)
                foreach_mul_(velocity, self.momentum)
                foreach_add_(unsent, grads)
            else:
                foreach_mul_(velocity, self.momentum)
                foreach_add_(velocity, grads)
            foreach_add_(unsent, velocity)
        return unsent_Kn

    def release(self, name: str, index_KM: Tensor) -> None:
        """Forgets what was sent: ``V = 0`` and, with masking, ``U = 0`` at these positions."""
        self.unsent[name].scatter_(1, index_KM, 0)
        if self.masking and name in self.velocity:
            self.velocity[name].scatter_(1, index_KM, 0)

    def start_from(self, name: str, velocity_Kn: Tensor) -> None:
        """Sets U, when compression begins after dense steps that built up momentum."""
        if self.mode != "gradient":
            self.velocity[name] = velocity_Kn

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Returns copies of ``velocity`` and ``unsent``, by tensor name; row k is worker k's."""
        return {
            "velocity": {name: u.clone() for name, u in self.velocity.items()},
            "unsent": {name: v.clone() for name, v in self.unsent.items()},
        }

    def load_state_dict(
        self, state: dict[str, dict[str, Tensor]], device: torch.device | None = None
    ) -> None:
        """Restores what `state_dict` returned, on the given device."""
        self.velocity = {name: u.to(device, copy=True) for name, u in state["velocity"].items()}
        self.unsent = {name: v.to(device, copy=True) for name, v in state["unsent"].items()}


class MomentumBuffer:
    """Ordinary momentum of tensors that all workers share, in the memory's conventions.

    Heavy ball: ``u = m u + d``, direction ``u``. Nesterov: ``u = m (u + d)``, direction
    ``u + d``; the same directions as ``torch.optim.SGD``.

    Args:
        momentum: m, in [0, 1).
        nesterov: which of the two.
    """

    def __init__(self, momentum: float = 0.9, nesterov: bool = False) -> None:
        self.momentum = momentum
        self.nesterov = nesterov
        self.velocity: dict[str, Tensor] = {}

    def apply_(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Replaces every tensor d by its momentum direction, in place."""
        if self.momentum == 0:
            return
        tensors = list(tensors)
        velocity = [_slot(self.velocity, n, d) for n, d in zip(names, tensors, strict=True)]
        if self.nesterov:
            foreach_add_(velocity, tensors)
            foreach_mul_(velocity, self.momentum)
            foreach_add_(tensors, velocity)
        else:
            foreach_mul_(velocity, self.momentum)
            foreach_add_(velocity, tensors)
            foreach_copy_(tensors, velocity)

    def pop(self, name: str) -> Tensor | None:
        """Takes a velocity out, or returns None if there is none."""
        return self.velocity.pop(name, None)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of the velocities, by tensor name."""
        return {name: u.clone() for name, u in self.velocity.items()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | None = None) -> None:
        """Restores what `state_dict` returned, on the given device."""
        self.velocity = {name: u.to(device, copy=True) for name, u in state.items()}


def _slot(store: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in store:
        store[name] = torch.zeros_like(like, memory_format=torch.contiguous_format)
    return store[name]


def _cached(*tensors_Kn: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yields lists of tensors, each with its pieces of all, to be worked on one after the other.

    On a CPU a piece is read from memory once for several operations.
    """
    if tensors_Kn[0][0].device.type != "cpu":
        yield tuple(map(list, tensors_Kn))
        return
    for of_name_Kn in zip(*tensors_Kn, strict=True):
        for pieces in zip(*(x_Kn.view(-1).split(_PIECE) for x_Kn in of_name_Kn), strict=True):
            yield tuple([piece] for piece in pieces)
