"""What a computation costs, measured or counted: peak memory, operations, solves."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from repro.internals import TorchDispatchMode, identity, tree_leaves

# What a device can do at most, in 1e12 floating-point operations a second, by a part of its name:
# dense, without sparsity, as its maker states it (bf16 on matrix cores, tf32 likewise, float32).
PEAKS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989, "tf32": 495, "float32": 67},
    "H100 PCIe": {"bf16": 756, "tf32": 378, "float32": 51},
    "H100": {"bf16": 989, "tf32": 495, "float32": 67},
    "A100": {"bf16": 312, "tf32": 156, "float32": 19.5},
    "L40S": {"bf16": 362, "tf32": 183, "float32": 91.6},
    "V100": {"float32": 15.7},
}
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
_ELEMENTWISE = {"mul", "div", "reciprocal", "square", "rsqrt", "sqrt"}


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
        given = {
            identity(t.untyped_storage())
            for t in tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        }
        output = func(*args, **kwargs)
        for tensor in tree_leaves(output):
            # What an operation was given it did not create: views, in-place results.
            if isinstance(tensor, Tensor) and identity(tensor.untyped_storage()) not in given:
                self._born(tensor.untyped_storage())
        return output

    def _born(self, storage: Any) -> None:
        key, size = identity(storage), storage.nbytes()
        if key in self.known:
            return

        def died(_: Any) -> None:
            if self.known.pop(key, None) is not None:
                self.live -= size

        self.known[key] = weakref.ref(storage, died)
        self.live += size
        self.peak = max(self.peak, self.live)


class SavedForBackward:
    """Measures what autograd keeps for backward passes inside a ``with`` block, in bytes.

    Every tensor that an operation saves is counted from then until its graph is freed, by its
    storage: an activation that two operations save counts once. The same on every device, because
    nothing is measured but sizes.

    Args:
        besides: tensors that are there anyway (parameters, buffers) and do not count.

    Attributes:
        live: bytes that are kept now.
        peak: the most that was kept at one time.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
        self.live = self.peak = 0
        self._besides = {identity(tensor.untyped_storage()) for tensor in besides}
        self._savers: dict[int, int] = {}  # storage -> how many graphs' nodes keep it
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> SavedForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())
        storage = tensor.untyped_storage()
        key, size = identity(storage), storage.nbytes()
        if key not in self._besides:
            self._savers[key] = self._savers.get(key, 0) + 1
            if self._savers[key] == 1:
                self.live += size
                self.peak = max(self.peak, self.live)
            weakref.finalize(kept, self._freed, key, size)
        return kept

    def _freed(self, key: int, size: int) -> None:
        self._savers[key] -= 1
        if self._savers[key] == 0:
            del self._savers[key]
            self.live -= size


class _Kept:
    """A saved tensor whose end can be noticed: nothing but the graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class CountOperations(TorchDispatchMode):
    """Counts the real multiplications of all PyTorch operations inside a ``with`` block.

    A complex product counts as four real ones. Products of matrices, elementwise products and
    quotients, and the leading term of each factorisation are counted; additions, exponentials and
    memory traffic are not. A factorisation or solve is also counted as such.

    Attributes:
        multiplications: real multiplications so far.
        solves: by name, the calls that invert, solve with, or factorise a matrix.
        names: of all operations so far, as PyTorch calls them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0
        self.solves: dict[str, int] = {}
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts it."""
        if torch.is_inference_mode_enabled():
            # There, operations that consist of others arrive whole.
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        name = func.overloadpacket.__name__.rstrip("_")
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        output = result[0] if isinstance(result, tuple | list) else result
        if not tensors or not isinstance(output, Tensor):
            return result
        real = 4 if any(tensor.is_complex() for tensor in tensors) else 1
        if name in _PRODUCTS:
            self.multiplications += real * output.numel() * tensors[-1].shape[-2]
        elif name in _ELEMENTWISE:
            self.multiplications += real * output.numel()
        elif "linalg" in name or "cholesky" in name or "inverse" in name:
            self.solves[name] = self.solves.get(name, 0) + 1
            self.multiplications += real * _cost(name, tensors)
        return result


class CountFlops(TorchDispatchMode):
    """Counts the floating-point operations of products inside a ``with`` block, backward included.

    Products of matrices, convolutions and attention, a multiplication and an addition each, by the
    formulas of `torch.utils.flop_counter`; elementwise work is not counted.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in _CPU_ATTENTION and func.overloadpacket not in flop_registry:
            with self:  # in inference mode layers arrive whole: their parts are counted
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        result = func(*args, **kwargs)
        if name in _CPU_ATTENTION:
            self.flops += _CPU_ATTENTION[name] * _attention(*args[_QUERY[name] :][:2])
        else:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return result


# Products of queries, keys and values that the CPU's attention makes; where the query stands.
_CPU_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 5,
}
_QUERY = dict(zip(_CPU_ATTENTION, (0, 1), strict=True))


def _attention(q_BHTE: Tensor, k_BKSE: Tensor) -> int:
    """Operations of one product of all queries with all keys."""
    return 2 * q_BHTE.numel() * k_BKSE.shape[-2]


def peak_flops(device: str, precision: str) -> float | None:
    """The most operations a second that a device can do; None where it is not known.

    Args:
        device: its name, as ``torch.cuda.get_device_name`` says it.
        precision: ``bf16``, ``tf32`` or ``float32``.
    """
    known = next((peaks for name, peaks in PEAKS.items() if _is_in(name, device)), {})
    return known[precision] * 1e12 if precision in known else None


def _is_in(name: str, device: str) -> bool:
    return all(word in device for word in name.split())


def _cost(name: str, tensors: list[Tensor]) -> int:
    """Products of a dense factorisation, to leading order (Golub and Van Loan)."""
    *batch, rows, columns = tensors[0].shape
    small, large = min(rows, columns), max(rows, columns)
    count = math.prod(batch)
    if "solve" in name:
        right = tensors[1].shape[-1] if len(tensors) > 1 else 1
        return count * (small**3 // 3 + small**2 * right)
    if "inv" in name:
        return count * small**3
    if "svd" in name:
        return count * (4 * large * small**2 + 8 * small**3)
    if "qr" in name:  # the factorisation, and forming Q
        return count * 2 * (large * small**2 - small**3 // 3)
    if "eig" in name:
        return count * 9 * small**3
    return count * small**3 // 3  # Cholesky, LU, determinants


def count_operations(function: Any, *args: Any) -> CountOperations:
    """Counts what ``function(*args)`` does, without gradients."""
    with torch.no_grad(), CountOperations() as counted:
        function(*args)
    return counted


def multiply_accumulates(model: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of a forward pass, half of what `CountFlops` counts.

    Products of matrices, convolutions and attention count; norms, activations and additions do not.

    Args:
        model: any module.
        inputs: what it is called with; all examples of the batch count.
    """
    with torch.no_grad(), CountFlops() as counted:
        model(*inputs)
    return counted.flops // 2  # a product and an addition are two of its
