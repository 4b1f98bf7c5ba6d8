"""How much the curvature of batches fluctuates, along a direction and on average."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from repro.toolbox.linear_algebra.lanczos import Product


@dataclass(frozen=True)
class HessianNoise:
    """Variances of ε = H_B - H, each times the effective batch size, so that they depend on no B.

    Attributes:
        total: S1, b E|ε v|² for the unit eigenvector v of the largest eigenvalue of H.
        across: the same without the part along v, which moves the eigenvalue at first order only:
            what `repro.methods.rmt_lr.theory` calls noise.
        isotropic: b E|ε z|² for random unit z: P σ² as if the entries of ε were alike.
        first_order: (M,), vᵀ ε v of each batch; its mean over a partition of the data is zero.
    """

    total: float
    across: float
    isotropic: float
    first_order: Tensor


def hessian_noise(
    full: Product, batches: Product, top_P: Tensor, probes_KP: Tensor, members: int, b: float
) -> HessianNoise:
    """Measures it by 1 + K products with M batches at once.

    Args:
        full: product with H.
        batches: product of (M, P), row by row, with the H_B of M batches of one size.
        top_P: v, a unit vector.
        probes_KP: K random vectors of any length.
        members: M.
        b: the effective batch size; not infinite.
    """
    epsilon_MP = batches(top_P.expand(members, -1)) - full(top_P)
    along_M = epsilon_MP @ top_P
    total = b * float(epsilon_MP.square().sum(1).mean())
    squares = []
    for probe_P in probes_KP:
        z_P = probe_P / probe_P.norm()
        squares.append((batches(z_P.expand(members, -1)) - full(z_P)).square().sum(1).mean())
    return HessianNoise(
        total=total,
        across=total - b * float(along_M.square().mean()),
        isotropic=b * float(sum(squares) / len(squares)),
        first_order=along_M,
    )
