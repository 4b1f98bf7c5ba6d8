"""How much memory tensors take at most while something runs: measured, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory:
    """Measures the peak of tensor memory inside a ``with`` block, in bytes.

    On a GPU ``peak`` is what PyTorch's allocator says, everything that was allocated before
    included. On the CPU, whose allocator keeps no count, every storage that an operation creates is
    followed from birth to death, and ``peak`` is the most that lived at one time; to it comes what
    the caller says was there before.

    Args:
        device: where the work runs.
        before: tensors that exist already and stay (parameters, optimizer state); counted on the
            CPU only.
    """

    def __init__(self, device: torch.device, before: Iterable[Tensor] = ()) -> None:
        self.device = device
        self.peak = 0
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in before}
        self._births = _Births(sum(storages.values()))

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._births.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._births.__exit__(*exception)
            self.peak = self._births.peak


class _Births(TorchDispatchMode):
    """Follows the storages that operations create; backward passes on the CPU included."""

    def __init__(self, live: int) -> None:
        super().__init__()
        self.live = self.peak = live
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = func(*args, **kwargs)
        for tensor in tree_leaves(output):
            # What an operation was given it did not create: views, in-place results.
            if isinstance(tensor, Tensor) and _storage(tensor)._cdata not in given:
                self._born(_storage(tensor))
        return output

    def _born(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def died(_: Any) -> None:
            if self.known.pop(key, None) is not None:
                self.live -= size

        self.known[key] = weakref.ref(storage, died)
        self.live += size
        self.peak = max(self.peak, self.live)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
