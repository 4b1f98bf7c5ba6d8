"""What is measured: a list of jobs, what a job finds, what follows from all of them.

Barron norms are those of the extension at hand, an upper bound on the infimum over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

Found = dict[str, float]
ROUNDING = 1 + 1e-9  # by which an inequality may be missed


class Measurement(Protocol):
    """What `repro.experiments.barron_pde.module.Measured` does, job by job."""

    @property
    def jobs(self) -> Sequence[Any]:
        """What there is to do."""

    def measure(self, job: Any, generator: torch.Generator, device: torch.device, /) -> Found:
        """What a job finds, by names that no other job has."""

    def summary(self, found: Mapping[str, float], /) -> Found:
        """What follows from the findings of all jobs."""
