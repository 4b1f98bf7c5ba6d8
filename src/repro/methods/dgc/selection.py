"""Which entries to send: exact, sampled and random selectors, and a plain compressor.

Shapes: K rows (one per worker), n entries of one tensor, M picks per row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from repro.knobs import Share, check_choice, checked
from repro.methods.dgc.random_key import RandomKey

# On a CPU, large tensors are scanned in pieces that stay in cache, and |x| is never stored whole.
# Elsewhere every piece would wait for the device.
_PIECE = 1 << 17
# Fewer entries are sorted faster than they are sampled and scanned.
_SAMPLED = 1 << 14


def entries_to_send(numel: int, density: float) -> int:
    """Returns ``ceil(numel * density)``, at least 1.

    The density is taken as the decimal number that was written: 0.07 of 100 entries is 7, where
    floating point would say 8.
    """
    return max(1, math.ceil(numel * Fraction(repr(float(density)))))


@dataclass(frozen=True)
class Picks:
    """The selected positions of K rows.

    Attributes:
        index: positions [K, M] in [0, n), int64. A row with fewer than M picks repeats its own
            first one: harmless to whoever clears the picked entries.
        counts: number of valid picks per row, in [1, M]; they come first in the row.
    """

    index: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of_rows(cls, rows: Sequence[Tensor]) -> Picks:
        """Stacks one index vector per row, padding the shorter ones."""
        counts = tuple(row.numel() for row in rows)
        return cls(torch.stack([_pad(row, max(counts)) for row in rows]), counts)

    def padded(self, width: int) -> Picks:
        """Returns the same picks in rows of at least ``width`` positions."""
        return Picks(_pad(self.index, width), self.counts)

    def values(self, x_Kn: Tensor) -> Tensor:
        """Returns the picked entries, shape [K, M]; padding reads as 0."""
        values_KM = x_Kn.gather(1, self.index)
        width = self.index.shape[1]
        for row, count in enumerate(self.counts):
            if count < width:
                values_KM[row, count:] = 0
        return values_KM


def _pad(index: Tensor, width: int) -> Tensor:
    missing = width - index.shape[-1]
    if missing <= 0:
        return index
    return torch.cat([index, index[..., :1].expand(*index.shape[:-1], missing)], dim=-1)


class Selector(ABC):
    """Chooses the entries to send from each row, independently.

    Attributes:
        even: whether the number of picks depends on n and the density alone. If not, real
            processes have to tell each other how many entries they send.
    """

    even: bool = True

    @abstractmethod
    def __call__(self, x_Kn: Tensor, density: float, key: RandomKey) -> Picks:
        """Selects about ``density * n`` entries of every row.

        Args:
            x_Kn: values to choose from, shape [K, n].
            density: in (0, 1].
            key: names the random draw.
        """


class ExactSelector(Selector):
    """The ``ceil(n * density)`` entries of largest magnitude of each row."""

    @override
    def __call__(self, x_Kn: Tensor, density: float, key: RandomKey) -> Picks:
        """See `Selector`; the key is not used."""
        count = entries_to_send(x_Kn.shape[1], density)
        return Picks(_largest(x_Kn, count), (count,) * x_Kn.shape[0])


class RandomSelector(Selector):
    """``ceil(n * density)`` entries drawn without replacement: the control with top-k's bytes."""

    def __call__(self, x_Kn: Tensor, density: float, key: RandomKey) -> Picks:
        """See `Selector`."""
        rows, numel = x_Kn.shape
        count = entries_to_send(numel, density)
        device = x_Kn.device
        index = [
            torch.randperm(numel, generator=key.generator(row, device), device=device)[:count]
            for row in range(rows)
        ]
        return Picks(torch.stack(index), (count,) * rows)


class SampledSelector(Selector):
    """Hierarchical sampling (Lin et al., section 3.1).

    The threshold is the k-th largest magnitude of a small random sample. When far more entries
    than wanted reach it, an exact top-k among those that did settles the matter. When fewer do,
    fewer are sent: error feedback keeps the rest.

    The paper samples 0.1 % to 1 % of a tensor. A sample with few entries above the threshold
    makes the threshold meaningless, so this class also asks for at least `expected_hits` of them
    and is exact for tensors too small to provide them (our choice; with 100 hits the number of
    picks is about 10 % accurate).

    Args:
        sample_ratio: part of the entries to sample, in (0, 1].
        upper_bound: "far more than wanted" means more than this many times the wanted number.
        expected_hits: least number of sampled entries expected above the threshold.
    """

    even = False

    @checked
    def __init__(
        self, sample_ratio: Share = 0.01, upper_bound: float = 1.3, expected_hits: int = 100
    ) -> None:
        self.sample_ratio = sample_ratio
        self.upper_bound = upper_bound
        self.expected_hits = expected_hits

    def __call__(self, x_Kn: Tensor, density: float, key: RandomKey) -> Picks:
        """See `Selector`."""
        rows, numel = x_Kn.shape
        samples = max(
            entries_to_send(numel, self.sample_ratio), math.ceil(self.expected_hits / density)
        )
        if 2 * samples >= numel:  # sampling would cost as much as looking at everything
            return ExactSelector()(x_Kn, density, key)
        return Picks.of_rows(
            [self._one_row(x_Kn[row], density, samples, key, row) for row in range(rows)]
        )

    def _one_row(
        self, x_n: Tensor, density: float, samples: int, key: RandomKey, row: int
    ) -> Tensor:
        wanted = entries_to_send(x_n.numel(), density)
        where = torch.randint(
            x_n.numel(), (samples,), generator=key.generator(row, x_n.device), device=x_n.device
        )
        threshold = _kth_largest(x_n[where].abs_(), entries_to_send(samples, density))
        index = _reaching(x_n, threshold)
        if index.numel() == 0:  # NaN compares with nothing; let the exact selector report it
            return _largest(x_n[None], wanted)[0]
        if index.numel() > self.upper_bound * wanted:
            index = index[_largest(x_n[index][None], wanted)[0]]
        return index


class OfficialSampledSelector(Selector):
    """The rules of the authors' released code (`_sparsify` in its ``dgc/compression.py``).

    A strided sample with a random start gives the threshold. Up to ten rounds adapt it: more than
    1.3 k entries reach it: exact top-k among them; fewer than 0.8 k: threshold times 0.8; then
    the first k **in index order** are kept, a bias towards low indices that the paper does not
    have. Tensors of at most ``2/density`` entries are treated exactly.

    Args:
        sample_ratio: part of the entries to sample; values below 0.01 count as 0.01.
    """

    even = False
    upper_bound = 1.3
    lower_bound = 0.8
    rounds = 10

    @checked
    def __init__(self, sample_ratio: Share = 0.01) -> None:
        self.sample_ratio = max(sample_ratio, 0.01)

    def stride(self, numel: int, density: float) -> int:
        """Returns the distance between two sampled entries; 1 means all entries."""
        fewest = math.ceil(2 / density)
        if self.sample_ratio == 1 or numel <= fewest:
            return 1
        wanted = max(math.ceil(numel * self.sample_ratio), fewest)
        stride = math.ceil(numel / wanted / 32) * 32 + 1
        while numel // stride < wanted:
            stride -= 8
        return stride

    def __call__(self, x_Kn: Tensor, density: float, key: RandomKey) -> Picks:
        """See `Selector`."""
        stride = self.stride(x_Kn.shape[1], density)
        return Picks.of_rows(
            [
                self._one_row(x_n, density, stride, start=key.integer(row) % stride)
                for row, x_n in enumerate(x_Kn)
            ]
        )

    def _one_row(self, x_n: Tensor, density: float, stride: int, start: int) -> Tensor:
        wanted = entries_to_send(x_n.numel(), density)
        sample_hits = entries_to_send(x_n.numel() // stride, density)
        threshold = _kth_largest(x_n[start::stride].abs(), sample_hits)
        index = _reaching(x_n, threshold)
        for _ in range(self.rounds if stride > 1 else 0):
            if index.numel() > self.upper_bound * wanted:
                index = index[_largest(x_n[index][None], wanted)[0]]
                break
            if index.numel() >= self.lower_bound * wanted:
                break
            threshold = threshold * self.lower_bound
            index = _reaching(x_n, threshold)
        if index.numel() == 0:  # NaN compares with nothing; let the exact selector report it
            return _largest(x_n[None], wanted)[0]
        return index[:wanted]


@checked
def make_selector(name: str, sample_ratio: Share = 0.01) -> Selector:
    """Returns the selector of that name: exact, sampled, sampled_official or random."""
    known = {
        "exact": ExactSelector,
        "random": RandomSelector,
        "sampled": lambda: SampledSelector(sample_ratio),
        "sampled_official": lambda: OfficialSampledSelector(sample_ratio),
    }
    check_choice("make_selector", "selector", name, known)
    return known[name]()


@dataclass(frozen=True)
class SparseTensor:
    """What remains of a tensor: ``values[i]`` belongs at ``indices[i]`` of the flat tensor.

    Attributes:
        values: shape [M].
        indices: shape [M], int64, distinct.
        shape: of the dense tensor.
    """

    values: Tensor
    indices: Tensor
    shape: torch.Size


class TopKCompressor:
    """Keeps the largest entries of a tensor; usable by any study of communication.

    Args:
        ratio: density to keep, in (0, 1].
        selector: how to find the entries; exact by default.

    Raises:
        UserError: the ratio is not in (0, 1].
    """

    @checked
    def __init__(self, ratio: Share, selector: Selector | None = None) -> None:
        self.ratio = ratio
        self.selector = selector or ExactSelector()

    def compress(self, tensor: Tensor, key: RandomKey | None = None) -> SparseTensor:
        """Returns the kept entries; ``key`` names the random draw of a sampling selector."""
        flat = tensor.detach().reshape(-1)
        index = self.selector(flat[None], self.ratio, key or RandomKey()).index[0]
        return SparseTensor(flat[index], index, tensor.shape)

    @staticmethod
    def decompress(sparse: SparseTensor, out: Tensor | None = None) -> Tensor:
        """Returns the dense tensor, written into ``out`` (contiguous) if that is given."""
        if out is None:
            out = sparse.values.new_empty(sparse.shape)
        out.zero_().view(-1).index_copy_(0, sparse.indices, sparse.values)
        return out


def _largest(x_Kn: Tensor, count: int) -> Tensor:
    """Returns the positions [K, count] of the largest magnitudes of each row.

    Large rows on a CPU are first cut down to the entries above a threshold that more than ``count``
    should reach, by a regular sample: sorting only those is many times faster, and finds the same.
    """
    if x_Kn.device.type == "cpu" and x_Kn.shape[1] >= _SAMPLED:
        return torch.stack([_largest_of_many(x_n, count) for x_n in x_Kn])
    return _sorted_out(x_Kn, count)


def _largest_of_many(x_n: Tensor, count: int) -> Tensor:
    numel = x_n.numel()
    # About 8 wanted entries in the sample at least. The step shares no factor 2 or 3 with the sides
    # of weights, whose kernels may differ from place to place.
    stride = min(100, count // 8) // 6 * 6 + 1
    sample = x_n[::stride]
    wanted = sample.numel() * count / numel
    low = math.ceil(wanted + 4 * math.sqrt(wanted))  # by four standard deviations
    if stride > 1 and 2 * low < sample.numel():
        index = _reaching(x_n, _kth_largest(sample.abs(), low))
        # Too few are bad luck, too many all zero or alike: then all are sorted.
        if count <= index.numel() <= numel // 2:
            return index[_sorted_out(x_n[index], count)]
    return _sorted_out(x_n, count)


def _sorted_out(x_n: Tensor, count: int) -> Tensor:
    return x_n.abs().topk(count, sorted=False).indices


def _kth_largest(magnitude_n: Tensor, k: int) -> Tensor:
    return magnitude_n.topk(k, sorted=False).values.min()


def _reaching(x_n: Tensor, threshold: Tensor) -> Tensor:
    """Returns the positions whose magnitude is at least the threshold, in index order."""
    if x_n.device.type != "cpu" or x_n.dtype not in (torch.float32, torch.float64):
        return (x_n.abs() >= threshold).nonzero().view(-1)
    # NumPy compares and lists several times faster than PyTorch.
    x, least = x_n.detach().numpy(), threshold.detach().numpy()
    found = [
        np.flatnonzero(np.abs(x[start : start + _PIECE]) >= least) + start
        for start in range(0, len(x), _PIECE)
    ]
    return torch.from_numpy(np.concatenate(found))
