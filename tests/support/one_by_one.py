"""The published skeletonisation written naively: one convolution for every kernel orientation.

A second version, independent of `repro.methods.skeleton`, and what its speed is measured against.
Everything runs on volumes, all eight subfields are visited, and all gradients are autograd's.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

CUBE = list(itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)))
ORDER = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)]


def clip(x: Tensor) -> Tensor:
    return F.hardtanh(x, 0, 1)


def conv(x: Tensor, wanted: dict[tuple[int, int, int], float], stride: int) -> Tensor:
    kernel = torch.zeros(1, 1, 3, 3, 3, dtype=x.dtype)
    for (z, y, w), value in wanted.items():
        kernel[0, 0, z + 1, y + 1, w + 1] = value
    return F.conv3d(x, kernel, stride=stride)


def neighbours(order: int) -> list[tuple[int, int, int]]:
    return [o for o in CUBE if sum(map(abs, o)) == order]


def parts(offset: tuple[int, int, int], size: int) -> list[tuple[int, int, int]]:
    """Neighbours that keep `size` of the non-zero components of an offset."""
    axes = [axis for axis in range(3) if offset[axis]]
    kept = itertools.combinations(axes, size)
    return [tuple(offset[a] if a in keep else 0 for a in range(3)) for keep in kept]  # type: ignore[misc]


def detected(volume: Tensor, wanted: dict[tuple[int, int, int], float], stride: int) -> Tensor:
    """1 where the configuration is, of a volume of 0 and 1 padded for the windows."""
    return F.relu(conv(2 * volume - 1, wanted, stride) - (len(wanted) - 1))


def boolean(volume: Tensor, stride: int = 2) -> Tensor:
    """Bertrand's simple points."""
    faces, edges, corners = neighbours(1), neighbours(2), neighbours(3)
    a6 = a18 = a26 = b26 = b18 = torch.zeros(())
    for f in faces:
        touching = [e for e in edges if f in parts(e, 1)]
        a6 = a6 + detected(volume, {f: -1} | dict.fromkeys(touching, 1.0), stride)
    for e in edges:
        f1, f2 = parts(e, 1)
        axis = e.index(0)
        up = tuple(int(a == axis) for a in range(3))
        down = tuple(-c for c in up)
        beside = [tuple(map(sum, zip(f, z, strict=True))) for f in (f1, f2) for z in (up, down)]
        a18 = a18 + detected(volume, dict.fromkeys([e, f1, f2], -1.0), stride)
        bg = dict.fromkeys([f1, f2, up, down, *beside], -1.0)
        b18 = b18 + detected(volume, {e: 1.0} | bg, stride)  # type: ignore[arg-type]
    for v in corners:
        near = dict.fromkeys([*parts(v, 1), *parts(v, 2)], -1.0)
        a26 = a26 + detected(volume, near | {v: -1}, stride)
        b26 = b26 + detected(volume, near | {v: 1}, stride)
    n6 = conv(1 - volume, dict.fromkeys(faces, 1.0), stride)
    n18 = conv(volume, dict.fromkeys([*faces, *edges], 1.0), stride)
    n26 = conv(volume, dict.fromkeys([*faces, *edges, *corners], 1.0), stride)

    def is1(count: Tensor) -> Tensor:
        return clip(count) * clip(2 - count)

    def is0(count: Tensor) -> Tensor:
        return clip(1 - count)

    c3 = is1(n18) * is0(b26)
    c4 = is0(a6) * is0(b26) * is0(b18) * is1(n6 - a18 + a26)
    return torch.cat([is1(n6), is1(n26), c3, c4], 1).amax(1, keepdim=True)


def windows(volume: Tensor, stride: int) -> Tensor:
    """(B * n, 1, 3, 3, 3): every window on its own, as the Euler test takes them."""
    for axis in (2, 3, 4):
        volume = volume.unfold(axis, 3, stride)
    return volume.reshape(-1, 1, 3, 3, 3)


def background_euler_number(window: Tensor) -> Tensor:
    """Vertices − edges + faces − octants among the background of 3×3×3 windows."""
    bg = 1 - 2 * window
    total = F.relu(bg).flatten(1).sum(1)
    for axes in range(1, 4):
        for spanned in itertools.combinations(range(3), axes):
            size = [2 if axis in spanned else 1 for axis in range(3)]
            mean = F.avg_pool3d(bg, size, 1)
            cells = 2 ** (axes - 1) * F.relu(mean - (1 - 2.0 ** (1 - axes)))
            total = total + (-1) ** axes * cells.flatten(1).sum(1)
    return total


def euler(volume: Tensor, stride: int = 2) -> Tensor:
    """Points whose deletion keeps the Euler number."""
    found = windows(volume, stride)
    centre = torch.ones(3, 3, 3)
    centre[1, 1, 1] = 0
    change = background_euler_number(found * centre) - background_euler_number(found)
    soft = 1 - clip(change.abs())
    size = [len(range(0, n - 2, stride)) for n in volume.shape[2:]]
    soft = soft.view(len(volume), 1, *size)
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def skeletonize(x: Tensor, num_iter: int, kind: str = "boolean", refresh: bool = False) -> Tensor:
    """Skeleton of binary x (B, 1, [D,] H, W); ``refresh`` is the mistake of late end points."""
    simple = {"boolean": boolean, "euler": euler}[kind]
    volume = F.pad(x if x.dim() == 5 else x[:, :, None], (1,) * 6)
    everywhere = dict.fromkeys([o for o in CUBE if any(o)], 1.0)
    for _ in range(num_iter):
        ends = clip(2 - conv(F.pad(volume, (1,) * 6), everywhere, 1))
        for z, y, w in ORDER:
            if refresh:
                ends = clip(2 - conv(F.pad(volume, (1,) * 6), everywhere, 1))
            part = F.pad(volume[:, :, z:, y:, w:], (1,) * 6)
            removed = simple(part) * (1 - ends[:, :, z::2, y::2, w::2])
            left = torch.minimum(volume[:, :, z::2, y::2, w::2], 1 - removed)
            volume = volume.clone()
            volume[:, :, z::2, y::2, w::2] = left
    skeleton = volume[:, :, 1:-1, 1:-1, 1:-1]
    return skeleton if x.dim() == 5 else skeleton[:, :, 0]
