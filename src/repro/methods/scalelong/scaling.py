"""The coefficients of long skips, and what puts them onto a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Positive, Share, checked
from repro.toolbox.method import Method

FOLKLORE = 2**-0.5  # the constant that diffusion code bases used before this paper


def coefficients(
    kind: str,
    n_skips: int,
    kappa: float = 0.5,
    const: float = FOLKLORE,
    reverse: bool = False,
) -> list[float]:
    """The coefficients of all skips in decoder order, the deepest first.

    Args:
        kind: ``none`` (all 1), ``const`` (all ``const``) or ``cs`` (``kappa^(N-1-j)``).
        n_skips: N.
        kappa: base of ``cs``, in (0, 1].
        const: value of ``const``.
        reverse: the shallowest skip gets the smallest coefficient instead: an ablation.

    Raises:
        UserError: the coefficients of this kind are not known beforehand (``ls``).
    """
    if kind == "ls":
        raise UserError("method.kind=ls learns its coefficients: there is no list of them.")
    known = {
        "none": [1.0] * n_skips,
        "const": [const] * n_skips,
        "cs": [kappa ** (n_skips - 1 - j) for j in range(n_skips)],
    }[kind]
    return known[::-1] if reverse else known


def forward_gain(kappas: Sequence[float]) -> float:
    """Theorem 3.1 at initialisation: ``||h_0||^2 / ||z_0||^2`` is about ``1 + sum of kappa^2``.

    For blocks that keep the expected squared norm, such as those of `repro.models.toys.skip_mlp`.
    """
    return 1 + sum(kappa**2 for kappa in kappas)


def robustness_bound(kappas: Sequence[float], lipschitz: float, middle: float) -> float:
    """Theorem 3.4: bounds ``||h_0(x + d) - h_0(x)|| / ||d||`` by ``sum kappa_i M^i + c_0``.

    Args:
        kappas: in decoder order, as `coefficients` returns them.
        lipschitz: M, an upper bound of the Lipschitz constant of every pair b_i after a_i.
        middle: Lipschitz constant of the middle block; ``c_0 = middle * M^N``.
    """
    outermost_first = list(kappas)[::-1]
    skips = sum(k * lipschitz**i for i, k in enumerate(outermost_first, start=1))
    return skips + middle * lipschitz ** len(outermost_first)


class SkipGate(nn.Module):
    """LS's network: ``sigmoid(W2 relu(W1 u + b1) + b2)``, one weight per token or channel.

    ``u`` is the skip averaged over all dimensions after the second one. So a token tensor (B, L, D)
    gets one weight per token, as in the official code, and an image tensor (B, C, H, W) one per
    channel, as in squeeze-and-excitation. A vector (B, C) gets one per entry.

    Args:
        features: size of the skip's second dimension (L or C).
        reduction: r; the hidden layer has ``features // r`` units, but at least two.
    """

    def __init__(self, features: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(2, features // reduction)
        self.squeeze = nn.Linear(features, hidden)
        self.excite = nn.Linear(hidden, features)

    def forward(self, skip: Tensor) -> Tensor:
        """The weights in (0, 1), of shape (B, features, 1, …) to be multiplied with ``skip``."""
        pooled_BF = skip.flatten(2).mean(2) if skip.ndim > 2 else skip
        gate_BF = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled_BF))))
        return gate_BF.view(*gate_BF.shape, *[1] * (skip.ndim - 2))


class SkipScaler(nn.Module):
    """Scales the skip that decoder block j consumes; the main branch is not touched.

    Args:
        kind: ``none``, ``const``, ``cs`` or ``ls``.
        features: size of the second dimension of each skip, in decoder order; its length is N.
        kappa: see `coefficients`; likewise ``const`` and ``reverse``.
        const: coefficient of ``const``.
        reduction: see `SkipGate`.
        shared: one gate for all skips (of equal size), or one for each skip.
        reverse: turns the order of the coefficients around.
    """

    def __init__(
        self,
        kind: str,
        features: Sequence[int],
        kappa: float = 0.5,
        const: float = FOLKLORE,
        reduction: int = 16,
        shared: bool = True,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.coefficients: list[float] | None = None
        if kind == "ls":
            names = [str(size) if shared else f"skip{j}" for j, size in enumerate(features)]
            sizes = dict(zip(names, features, strict=True))
            self.networks = nn.ModuleDict(
                {name: SkipGate(size, reduction) for name, size in sizes.items()}
            )
            self.names = names
        else:
            self.coefficients = coefficients(kind, len(features), kappa, const, reverse)

    def forward(self, skip: Tensor, j: int) -> Tensor:
        """The scaled skip, of the same shape.

        Args:
            skip: (B, features, …).
            j: the decoder block that consumes it, 0 the one next to the middle.
        """
        if self.coefficients is not None:
            return skip if self.coefficients[j] == 1 else skip * self.coefficients[j]
        gate: Tensor = self.networks[self.names[j]](skip)
        return skip * gate


class SkipScaling(Method):
    """Puts a `SkipScaler` onto a network's long skip connections.

    ``attach`` runs when the network already has its weights, so that networks with different
    scalers start from equal ones. ``kind=none`` is the plain network.

    Args:
        kind: ``none``, ``const`` (the folklore 1/sqrt 2), ``cs`` or ``ls``.
        kappa: base of ``cs``, in (0, 1]; the authors recommend 0.5 to 0.95.
        const: coefficient of ``const``, above 0.
        reduction: r of ``ls``, 16 in the official code.
        shared: whether ``ls`` has one network for all skips.
        reverse: gives the shallowest skip the smallest coefficient, an ablation of ``cs``.

    Raises:
        UserError: an argument lies outside its range.
    """

    @checked
    def __init__(
        self,
        kind: Literal["none", "const", "cs", "ls"] = "cs",
        kappa: Share = 0.5,
        const: Positive = FOLKLORE,
        reduction: Count = 16,
        shared: bool = True,
        reverse: bool = False,
    ) -> None:
        self.kind = kind
        self.knobs = {
            "kappa": kappa,
            "const": const,
            "reduction": reduction,
            "shared": shared,
            "reverse": reverse,
        }

    def scaler(self, features: Sequence[int]) -> SkipScaler:
        """A new scaler for skips of these sizes, in decoder order."""
        return SkipScaler(self.kind, features, **self.knobs)  # type: ignore[arg-type]

    def attach(self, model: nn.Module) -> None:
        """Gives the model a scaler; a model that already has one keeps it.

        Raises:
            UserError: the model has no long skip connections.
        """
        features = getattr(model, "skip_features", None)
        if features is None:
            raise UserError(
                f"{type(model).__name__} has no long skip connections to scale: choose model=uvit, "
                "skip_mlp or ddpm_unet."
            )
        if not isinstance(model.scaler, SkipScaler):
            model.scaler = self.scaler(features)
