"""Where workers live: in this process (simulated) or one per process (torch.distributed).

Both offer the same three exchanges over lists of tensors with one row per local worker, so that
a method is written once. Shapes: N workers in all, K of them local, M picks per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from repro.internals import foreach_add_, foreach_copy_
from repro.methods.dgc.selection import Picks


class Cluster(ABC):
    """The workers and the ways in which they exchange tensors.

    Attributes:
        size: N, the number of workers.
        rows: K, the number of workers that live in this process.
        first: rank of the first local worker.
    """

    size: int
    rows: int
    first: int

    @abstractmethod
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor of shape [K, n] over all N workers, into its row 0."""

    @abstractmethod
    def max_(self, tensor_KT: Tensor) -> None:
        """Replaces every row by the maximum over all N workers, in place."""

    @abstractmethod
    def gather(
        self, picks: Sequence[Picks], values_KM: Sequence[Tensor], even: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Lets every worker see every worker's sparse message.

        Args:
            picks: positions, one `Picks` per tensor.
            values_KM: the values at these positions; padding is 0.
            even: whether all workers pick equally many entries.

        Returns:
            Per tensor the positions and the values of all workers, both of shape [N, M'].
        """

    @abstractmethod
    def collect(self, tensor_K: Tensor) -> Tensor | None:
        """Returns all workers' rows [N, ...] on the CPU of rank 0, and None elsewhere."""


class SimulatedCluster(Cluster):
    """N workers in one process: the exchanges are sums over rows."""

    first = 0

    def __init__(self, size: int) -> None:
        self.size = self.rows = size

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See `Cluster`."""
        total = [tensor[0] for tensor in tensors]
        for row in range(1, self.size):
            foreach_add_(total, [tensor[row] for tensor in tensors])

    def max_(self, tensor_KT: Tensor) -> None:
        """See `Cluster`."""
        tensor_KT.copy_(tensor_KT.amax(dim=0, keepdim=True).expand_as(tensor_KT))

    @override
    def gather(
        self, picks: Sequence[Picks], values_KM: Sequence[Tensor], even: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """See `Cluster`."""
        return [(p.index, values) for p, values in zip(picks, values_KM, strict=True)]

    def collect(self, tensor_K: Tensor) -> Tensor | None:
        """See `Cluster`."""
        return tensor_K.detach().to("cpu", copy=True)


class ProcessCluster(Cluster):
    """One worker per process of the default process group (gloo or NCCL)."""

    rows = 1

    def __init__(self) -> None:
        self.size = dist.get_world_size()
        self.first = dist.get_rank()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See `Cluster`; one all-reduce for all tensors."""
        flat = torch.cat([tensor[0] for tensor in tensors])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.shape[1] for tensor in tensors])
        foreach_copy_([tensor[0] for tensor in tensors], pieces)

    def max_(self, tensor_KT: Tensor) -> None:
        """See `Cluster`."""
        dist.all_reduce(tensor_KT, op=dist.ReduceOp.MAX)

    def gather(
        self, picks: Sequence[Picks], values_KM: Sequence[Tensor], even: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """See `Cluster`; two all-gathers for all tensors, and one of the counts if uneven."""
        index = [p.index[0] for p in picks]
        values = [v[0] for v in values_KM]
        widths = [i.numel() for i in index]
        if not even:
            widths_NT = self._all_gather(torch.tensor(widths, device=index[0].device))
            widths = widths_NT.amax(dim=0).tolist()
            index = [p.padded(w).index[0] for p, w in zip(picks, widths, strict=True)]
            values = [
                torch.nn.functional.pad(v, (0, w - v.numel()))
                for v, w in zip(values, widths, strict=True)
            ]
        index_N = self._all_gather(torch.cat(index)).split(widths, dim=1)
        values_N = self._all_gather(torch.cat(values)).split(widths, dim=1)
        return list(zip(index_N, values_N, strict=True))

    def collect(self, tensor_K: Tensor) -> Tensor | None:
        """See `Cluster`; a collective call."""
        mine = tensor_K[0].detach().contiguous()
        rows = [torch.empty_like(mine) for _ in range(self.size)] if self.first == 0 else None
        dist.gather(mine, rows, dst=0)
        return torch.stack([row.cpu() for row in rows]) if rows else None

    def _all_gather(self, tensor: Tensor) -> Tensor:
        out = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(out, tensor)
        return torch.stack(out)
