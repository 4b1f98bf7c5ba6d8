"""Which points of a binary image are simple: deleting one leaves the topology as it is.

Both tests of the paper look at a point's 3×3×3 neighbourhood with convolutions. A *detector* is a
kernel with entries +1 (must be foreground), −1 (must be background) and 0 (anything), applied to
the image as +1 and −1; minus its number of entries but one, and through ReLU, it is 1 where the
configuration is there and 0 elsewhere. The orientations of a configuration are detectors of their
own, whose sum counts how often it occurs around the point.

All detectors are rows of one convolution here. On binary input every intermediate value is a small
multiple of 1/2, hence exact in floating point, so that the result is, bit for bit, that of one
convolution for each orientation. For an image (2-D) the volume is a single slice between two of
background; the outer parts of the kernels then meet constants, detectors that need foreground
there never fire, and the others coincide in groups: 14 different ones are left of 49.

Foreground is connected by faces, edges and corners (26 or 8 neighbours), background by faces only
(6 or 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Offset = tuple[int, ...]  # of a neighbour, each component in {-1, 0, 1}
NEIGHBOURS: tuple[Offset, ...] = tuple(
    offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)
)
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


class Detectors(NamedTuple):
    """Counts of configurations, as ``mix @ relu(conv(x, weight) + bias)`` of x in [−1, 1].

    Attributes:
        weight: (K, 1, 3, 3, 3) or (K, 1, 3, 3), one kernel for each detector.
        bias: (K,).
        mix: (M, K), how often each detector adds to each of M counts.
    """

    weight: Tensor
    bias: Tensor
    mix: Tensor

    def flattened(self) -> Detectors:
        """The detectors of a slice between two slices of background, without idle or equal ones."""
        bias = self.bias - self.weight[:, :, [0, 2]].sum((1, 2, 3, 4))
        rows = torch.cat([self.weight[:, :, 1].flatten(1), bias[:, None]], 1)
        able = rows[:, :-1].abs().sum(1) + bias > 0
        distinct, group = rows[able].unique(dim=0, return_inverse=True)
        mix = self.mix.new_zeros(len(self.mix), len(distinct))
        mix.index_add_(1, group, self.mix[:, able])
        return Detectors(distinct[:, :-1].reshape(-1, 1, 3, 3), distinct[:, -1], mix)


def boolean_detectors() -> Detectors:
    """The configurations of Bertrand's test (1996): a6, a18, a26, b26, b18, and neighbour counts.

    Counts, in this order: faces that are background between four foreground edges (a6); edges
    (a18) and corners (a26) that are background with all faces and edges next to them; corners (b26)
    and edges (b18) that are foreground among background; background faces (n6); foreground among
    faces and edges (n18) and among all neighbours (n26).
    """
    counts: list[list[tuple[Tensor, float]]] = [[] for _ in range(8)]
    a6, a18, a26, b26, b18, n6, n18, n26 = counts
    faces, edges, corners = ([o for o in NEIGHBOURS if _order(o) == k] for k in (1, 2, 3))
    for face in faces:
        a6.append(_configuration(fg=[e for e in edges if _touch(face, e)], bg=[face]))
    for edge in edges:
        near = [f for f in faces if _touch(f, edge)]
        axis = edge.index(0)
        along = [f for f in faces if f[axis]]  # the two faces beside the edge's ends
        ends = [_sum(face, end) for face in near for end in along]
        a18.append(_configuration(bg=[edge, *near]))
        b18.append(_configuration(fg=[edge], bg=[*near, *along, *ends]))
    for corner in corners:
        near = [o for o in (*edges, *faces) if _touch(o, corner)]
        a26.append(_configuration(bg=[corner, *near]))
        b26.append(_configuration(fg=[corner], bg=near))
    n6.append(_number(bg=faces))
    n18.append(_number(fg=[*faces, *edges]))
    n26.append(_number(fg=NEIGHBOURS))
    return _stack(counts)


def euler_detectors() -> Detectors:
    """What the Euler number of the background gains when the centre joins it, minus one.

    With the centre, the background gains one vertex, an edge to each background face, a square
    with each edge whose two faces are background too, a cube with each corner whose neighbours
    are: 1 − n6 + a18 − a26 (Lobregt, Verbeek, Groen 1980). The one count is −n6 + a18 − a26.
    """
    boolean = boolean_detectors()
    row = -boolean.mix[5] + boolean.mix[1] - boolean.mix[2]
    used = row != 0
    return Detectors(boolean.weight[used], boolean.bias[used], row[None, used])


class BooleanTest(nn.Module):
    """Bertrand's exact characterisation of simple points.

    Attributes:
        tells_background: whether the answer differs among background points.

    Args:
        dims: 2 or 3.
    """

    tells_background = True
    weight: Tensor
    bias: Tensor
    mix: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims
        _register(self, boolean_detectors(), dims)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Maps foreground x (B, 1, *size) in {0, 1} to 1 at simple points, 0 elsewhere.

        Only points with all neighbours inside x are looked at, so the result is smaller than x by
        one on each side, and only every ``stride``-th of those. A foreground point is meant;
        at background points the answer is that of the same neighbourhood around foreground.
        """
        return self._simple(_counts(self, 2 * x - 1, stride))

    def of_windows(self, x: Tensor) -> Tensor:
        """The same of single neighbourhoods: (n, 3^dims), point by point, to (n, 1)."""
        return self._simple(_counts_of_windows(self, x))

    @staticmethod
    def _simple(counts: Tensor) -> Tensor:
        a6, a18, a26, b26, b18, n6, n18, n26 = counts.unbind(1)
        isolated = _is0(b26)
        simple = torch.stack(
            [
                _is1(n6),
                _is1(n26),
                _is1(n18) * isolated,
                _is0(a6) * isolated * _is0(b18) * _is1(n6 - a18 + a26),
            ],
            1,
        )
        return simple.amax(1, keepdim=True)


class EulerTest(nn.Module):
    """Points whose deletion keeps the Euler number of the neighbourhood: necessary for simple.

    In 3-D one deletion can change two Betti numbers at once and keep their alternating sum.

    Attributes:
        tells_background: whether the answer differs among background points.

    Args:
        dims: 2 or 3.
    """

    tells_background = False
    weight: Tensor
    bias: Tensor
    mix: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims
        _register(self, euler_detectors(), dims)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """As `BooleanTest.forward`, but 1 at every background point: nothing changes there."""
        x = 2 * x - 1
        centre = (x[last_axes([slice(1, -1, stride)] * self.dims)] + 1) / 2
        return self._simple(centre, _counts(self, x, stride))

    def of_windows(self, x: Tensor) -> Tensor:
        """The same of single neighbourhoods: (n, 3^dims), point by point, to (n, 1)."""
        centre = x.shape[1] // 2
        return self._simple(x[:, centre, None], _counts_of_windows(self, x))

    @staticmethod
    def _simple(centre: Tensor, gain: Tensor) -> Tensor:
        return 1 - _clip((centre * (1 + gain)).abs())


def last_axes(slices: Iterable[slice]) -> Any:
    """The index that applies slices to the last axes of a tensor."""
    return (..., *slices)


def _counts(test: BooleanTest | EulerTest, x: Tensor, stride: int) -> Tensor:
    """Counts (B, M, *size) of configurations in x (B, 1, *size), which lies in [−1, 1]."""
    convolve = CONVOLUTIONS[test.dims]
    found = F.relu(convolve(x, test.weight, test.bias, stride))
    return convolve(found, test.mix)


def _counts_of_windows(test: BooleanTest | EulerTest, x: Tensor) -> Tensor:
    """The same counts (n, M) of windows (n, 3^dims) in [0, 1]."""
    weight_KW = test.weight.flatten(1)  # of 2x − 1
    found = F.relu(torch.addmm(test.bias - weight_KW.sum(1), x, 2 * weight_KW.T))
    return found @ test.mix.flatten(1).T


def _register(test: nn.Module, detectors: Detectors, dims: int) -> None:
    weight, bias, mix = detectors if dims == 3 else detectors.flattened()
    # Not persistent: constants of the method have no place in a model's checkpoints.
    test.register_buffer("weight", weight, persistent=False)
    test.register_buffer("bias", bias, persistent=False)
    test.register_buffer("mix", mix.reshape(*mix.shape, *[1] * dims), persistent=False)


def _clip(x: Tensor) -> Tensor:
    """To [0, 1] with derivative 0 at both ends, unlike `torch.clamp`."""
    return F.hardtanh(x, 0.0, 1.0)


def _is0(count: Tensor) -> Tensor:
    return _clip(1 - count)


def _is1(count: Tensor) -> Tensor:
    return _clip(count) * _clip(2 - count)


def _order(offset: Offset) -> int:
    """1 for a face, 2 for an edge, 3 for a corner."""
    return sum(map(abs, offset))


def _touch(near: Offset, far: Offset) -> bool:
    """Whether every non-zero component of the nearer neighbour is also the farther one's."""
    return all(a in (0, b) for a, b in zip(near, far, strict=True))


def _sum(a: Offset, b: Offset) -> Offset:
    return tuple(i + j for i, j in zip(a, b, strict=True))


def _kernel(fg: Sequence[Offset], bg: Sequence[Offset]) -> Tensor:
    kernel = torch.zeros(3, 3, 3)
    for offsets, sign in ((fg, 1.0), (bg, -1.0)):
        for z, y, x in offsets:
            kernel[z + 1, y + 1, x + 1] = sign
    return kernel


def _configuration(fg: Sequence[Offset] = (), bg: Sequence[Offset] = ()) -> tuple[Tensor, float]:
    """Kernel and bias that give 1 where all points are as wanted, and at most 0 elsewhere."""
    # A point that is not as wanted costs 2: with n points n − 1 is the threshold.
    return _kernel(fg, bg), 1.0 - len(fg) - len(bg)


def _number(fg: Sequence[Offset] = (), bg: Sequence[Offset] = ()) -> tuple[Tensor, float]:
    """Kernel and bias that count the points which are as wanted."""
    return _kernel(fg, bg) / 2, (len(fg) + len(bg)) / 2


def _stack(counts: Sequence[Sequence[tuple[Tensor, float]]]) -> Detectors:
    kernels = [kernel for detectors in counts for kernel, _ in detectors]
    biases = [bias for detectors in counts for _, bias in detectors]
    mix = torch.block_diag(*[torch.ones(1, len(detectors)) for detectors in counts])
    return Detectors(torch.stack(kernels)[:, None], torch.tensor(biases), mix)
