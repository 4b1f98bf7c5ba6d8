"""Multi-user MIMO downlink: the problem, and the precoders that are not learned.

A base station with M antennas serves K users with N antennas each. All users' channels are known,
total power P = 1 and noise σ² = 1/snr. Tensors carry their shape: B batch, K users, N antennas of a
user, M antennas of the base station, S = K d streams in the order of the users, d to each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from repro.data.worlds.channels import Downlink, heard, square
from repro.errors import UserError
from repro.knobs import Count, Positive, checked
from repro.toolbox.linear_algebra.conjugate_gradient import conjugate_gradient

Start = Literal["mrt", "rzf"]


def gram(H: Tensor) -> Tensor:
    """H Hᴴ of (B, S, M) channels: (B, S, S)."""
    return H @ H.mH


def structured_precoder(
    H: Tensor,
    snr: Tensor,
    priority: Tensor,
    power: Tensor,
    cg_steps: int | None = None,
    jacobi: bool = True,
    G: Tensor | None = None,
) -> Tensor:
    """The optimal structure of a linear precoder (Björnson, Bengtsson and Ottersten 2014).

    w_k = √p_k v_k/‖v_k‖ with v_k = (σ²I + Σ_i λ_i h_i h_iᴴ)⁻¹ h_k. By the push-through identity the
    v_k are the columns of Hᴴ Λ^½ (Λ^½ G Λ^½ + σ²I)⁻¹ Λ^-½ with the Gram matrix G = H Hᴴ, so that no
    matrix of the size of the antennas occurs. (Without the last factor the columns of users of
    little priority vanish, and with them the precision of their norms' gradients.)

    Args:
        H: (B, S, M) channels of the streams.
        snr: (B,).
        priority: λ, (B, S), not negative, with sum 1.
        power: p, (B, S), not negative, with sum 1.
        cg_steps: approximate the inverse by so many conjugate-gradient steps; None solves exactly.
        jacobi: see `conjugate_gradient`.
        G: the Gram matrix, where it is known already.

    Returns:
        (B, M, S) with ‖w_k‖² = p_k.
    """
    G = gram(H) if G is None else G
    root = priority.clamp(min=1e-20).sqrt().unsqueeze(-1)
    eye = torch.eye(H.shape[-2], dtype=H.dtype, device=H.device)
    A = (root * root.mT) * G + eye / snr[:, None, None]
    if cg_steps is None:
        mixed = torch.linalg.solve(A, eye.expand_as(A))
    else:
        mixed = conjugate_gradient(A, eye.expand_as(A), cg_steps, jacobi)
    return with_powers(H.mH @ (root / root.mT * mixed), power)


def with_powers(V: Tensor, power: Tensor) -> Tensor:
    """Scales the columns of (B, M, S) to squared norms (B, S); a column of zeros stays one."""
    norm = square(V).sum(-2).clamp(min=torch.finfo(power.dtype).tiny).rsqrt()
    return V * (_root(power) * norm).unsqueeze(-2)


def mrt(H: Tensor, snr: Tensor) -> Tensor:  # noqa: ARG001 - called like the others
    """Maximum ratio transmission: directions h_k, equal powers; (B, S, M) to (B, M, S)."""
    return with_powers(H.mH, _equal(H))


def zero_forcing(H: Tensor, snr: Tensor, waterfilling: bool = True) -> Tensor:
    """Directions Hᴴ G⁻¹, which reach no other user; the best powers for them, or equal ones.

    Args:
        H: (B, S, M) with S ≤ M.
        snr: (B,).
        waterfilling: powers that maximise the sum rate given these directions.

    Returns:
        (B, M, S).

    Raises:
        UserError: more streams than antennas.
    """
    if H.shape[-2] > H.shape[-1]:
        raise UserError(
            f"zero forcing needs an antenna for every stream: {H.shape[-2]} streams, "
            f"{H.shape[-1]} antennas."
        )
    G = gram(H)
    inverse = torch.linalg.inv(G)
    power = _equal(H)
    if waterfilling:
        gain = snr[:, None] / torch.diagonal(inverse, dim1=-2, dim2=-1).real
        power = water_filling(gain)
    return with_powers(H.mH @ inverse, power)


def regularised_zero_forcing(
    H: Tensor, snr: Tensor, factor: float = 1.0, cg_steps: int | None = None, jacobi: bool = True
) -> Tensor:
    """Directions Hᴴ (G + factor·Sσ²/P I)⁻¹ and equal powers: all λ are 1/(S·factor).

    Args:
        H: (B, S, M).
        snr: (B,).
        factor: 1 is the textbook's choice (transmit MMSE).
        cg_steps: see `structured_precoder`.
        jacobi: likewise.

    Returns:
        (B, M, S).
    """
    return structured_precoder(H, snr, _equal(H) / factor, _equal(H), cg_steps, jacobi)


def water_filling(gain: Tensor) -> Tensor:
    """Powers (…, S) with sum 1 that maximise Σ log(1 + gain·power), gain (…, S) positive."""
    floor, order = (1 / gain).sort(dim=-1)
    count = torch.arange(1, gain.shape[-1] + 1, device=gain.device)
    level = (1 + floor.cumsum(-1)) / count  # the water's level if the first so many are wet
    wet = (level > floor).sum(-1, keepdim=True)
    sorted_power = (level.gather(-1, wet - 1) - floor).clamp(min=0)
    return torch.zeros_like(gain).scatter(-1, order, sorted_power)


@checked
def wmmse_path(
    H: Tensor, snr: Tensor, reduced: bool = True, start: Start = "rzf"
) -> Iterator[Tensor]:
    """The precoders of WMMSE (Shi et al. 2011), one an iteration, without end.

    In the form in which noise scales with power, so that the constraint holds by scaling: receivers
    U_k = (Σ_j H_k W_j W_jᴴ H_kᴴ + ‖W‖²σ²/P I)⁻¹ H_k W_k, weights Ω_k = (I − U_kᴴ H_k W_k)⁻¹,
    W = (Σ H_kᴴ U_k Ω_k U_kᴴ H_k + Σ tr(Ω_k U_kᴴ U_k) σ²/P I)⁻¹ [H_kᴴ U_k Ω_k], scaled to power P.
    The sum rate never falls; where it ends is a local optimum.

    Args:
        H: (B, K, N, M).
        snr: (B,).
        reduced: first rotate the antennas so that only as many as there are receiving antennas
            matter (Hᴴ = QR): the same iterates, since the precoders stay in the span of the
            channels, but matrices of size KN instead of M (as R-WMMSE, Zhao et al. 2023).
        start: ``mrt`` or ``rzf``.

    Yields:
        (B, M, S) with ‖W‖² = 1.
    """
    Q, small = _wmmse_reduced(H, snr, reduced, start)
    yield from (W if Q is None else Q @ W for W in small)


def _wmmse_reduced(
    H: Tensor, snr: Tensor, reduced: bool, start: Start
) -> tuple[Tensor | None, Iterator[Tensor]]:
    """The iterates on rotated antennas, and the Q that rotates them back."""
    starts = {"mrt": mrt, "rzf": regularised_zero_forcing}
    B, K, N, M = H.shape
    W = starts[start](Downlink(H, snr, H).streams(), snr)
    if not reduced or M <= K * N:
        return None, _wmmse_iterates(H, snr, W)
    Q, R = torch.linalg.qr(H.flatten(1, 2).mH)
    return Q, _wmmse_iterates(R.mH.reshape(B, K, N, K * N), snr, Q.mH @ W)


def _wmmse_iterates(H: Tensor, snr: Tensor, W: Tensor) -> Iterator[Tensor]:
    B, K, N, M = H.shape
    d = W.shape[-1] // K
    eye_N, eye_d, eye_M = (torch.eye(n, dtype=H.dtype, device=H.device) for n in (N, d, M))
    noise = (1 / snr)[:, None, None]
    while True:
        received = heard(H, W)
        own = torch.diagonal(received, dim1=1, dim2=3).permute(0, 3, 1, 2)
        flat = received.flatten(-2)
        covariance = flat @ flat.mH + noise[:, None] * eye_N
        U = _times(_inverse(covariance), own)  # (B, K, N, d)
        Omega = _inverse(eye_d - _times(U.mH, own))
        back = _times(H.mH, U)  # (B, K, M, d)
        left = back.transpose(1, 2).reshape(B, M, K * d)
        right = _times(back, Omega).transpose(1, 2).reshape(B, M, K * d)
        regulariser = (_times(U, Omega) * U.conj()).real.sum((1, 2, 3))[:, None, None] * noise
        W = torch.linalg.solve(right @ left.mH + regulariser * eye_M, right)
        W = W * square(W).sum((-2, -1), keepdim=True).rsqrt()
        yield W


@checked
def wmmse(
    H: Tensor, snr: Tensor, iterations: int = 60, reduced: bool = True, start: Start = "rzf"
) -> Tensor:
    """The precoder (B, M, S) after so many iterations of `wmmse_path`."""
    Q, small = _wmmse_reduced(H, snr, reduced, start)
    W = next(itertools.islice(small, iterations - 1, None))
    return W if Q is None else Q @ W


class ClassicalPrecoder(nn.Module):
    """A precoder without parameters, called like the learned one.

    Args:
        kind: ``mrt``, ``zf``, ``rzf`` or ``wmmse``.
        cg_steps: rzf: conjugate-gradient steps in place of the inverse; None solves.
        jacobi: rzf with conjugate gradients: scale to a unit diagonal first.
        factor: rzf: of the regulariser.
        waterfilling: zf: the best powers instead of equal ones.
        iterations: of wmmse.
        reduced: wmmse: on matrices of the size of the users, not of the antennas.
        start: wmmse: ``mrt`` or ``rzf``.

    Raises:
        UserError: an unknown kind, or a number out of range.
    """

    problem = Downlink  # what it is called with

    @checked
    def __init__(
        self,
        kind: Literal["mrt", "zf", "rzf", "wmmse"],
        cg_steps: Count | None = None,
        jacobi: bool = True,
        factor: Positive = 1.0,
        waterfilling: bool = True,
        iterations: Count = 60,
        reduced: bool = True,
        start: Start = "rzf",
    ) -> None:
        super().__init__()
        self.kind, self.cg_steps, self.jacobi, self.factor = kind, cg_steps, jacobi, factor
        self.waterfilling, self.iterations = waterfilling, iterations
        self.reduced, self.start = reduced, start

    def forward(self, cell: Downlink) -> Tensor:
        """The precoder (B, M, S) for known channels."""
        if self.kind == "wmmse":
            return wmmse(cell.known, cell.snr, self.iterations, self.reduced, self.start)
        H = cell.streams()
        if self.kind == "mrt":
            return mrt(H, cell.snr)
        if self.kind == "zf":
            return zero_forcing(H, cell.snr, self.waterfilling)
        return regularised_zero_forcing(H, cell.snr, self.factor, self.cg_steps, self.jacobi)


def _equal(H: Tensor) -> Tensor:
    B, S, _ = H.shape
    return torch.full((B, S), 1 / S, dtype=H.real.dtype, device=H.device)


def _root(x: Tensor) -> Tensor:
    """√x for x ≥ 0, with a gradient of zero at zero: a softmax may underflow to it."""
    return x.clamp(min=1e-20).sqrt() * (x > 0)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """A product of many small matrices: as sums where the inner size is one, faster there."""
    return a * b if a.shape[-1] == b.shape[-2] == 1 else a @ b


def _inverse(x: Tensor) -> Tensor:
    """Inverses of many small matrices; of numbers without the detour through LAPACK."""
    return x.reciprocal() if x.shape[-1] == 1 else torch.linalg.inv(x)
