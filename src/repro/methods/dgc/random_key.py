"""Random numbers that depend on where they are needed, not on what was drawn before."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomKey:
    """Names the draw of one tensor in one step; row ``i`` belongs to worker ``worker + i``.

    Counter-based randomness has two merits here: simulated workers and real processes draw the
    same numbers although they visit the tensors in different orders, and a resumed run needs no
    generator state beyond the number of the step.

    Attributes:
        seed: seed of the run.
        step: number of finished steps.
        tensor: position of the parameter in the model.
        worker: rank of the worker that owns row 0.
    """

    seed: int = 0
    step: int = 0
    tensor: int = 0
    worker: int = 0

    def integer(self, row: int) -> int:
        """Returns a pseudo-random integer in [0, 2^63) for one row."""
        where = struct.pack("<4q", self.seed, self.step, self.tensor, self.worker + row)
        digest = hashlib.blake2b(where, digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self, row: int, device: torch.device) -> torch.Generator:
        """Returns a freshly seeded generator for one row."""
        return torch.Generator(device).manual_seed(self.integer(row))
