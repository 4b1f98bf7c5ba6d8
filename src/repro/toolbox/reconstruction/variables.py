"""Variables: what gradient descent moves so that a weight ends on its grid.

All of them live in positions of the grid (`repro.toolbox.reconstruction.grids`) and offer ``soft``,
the weight that training sees, and ``hard``, the weight on the grid that it ends with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.knobs import check_choice
from repro.toolbox.reconstruction.grids import Grid

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid's stretch: h = clip(1.2 σ(α) - 0.1, 0, 1)


class Variable(nn.Module):
    """One weight tensor, a grid, and a parameter ``moved`` that decides the rounding.

    Args:
        weight: the float weight.
        grid: fitted to it.
        selected: mask of the weights that may move; others stay rounded to nearest. None: all.
    """

    def __init__(self, weight: Tensor, grid: Grid, selected: Tensor | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.selected = selected
        self.fixed = grid.clip(grid.position(weight.detach()).round())  # round to nearest
        self.moved = nn.Parameter(self.start(grid.position(weight.detach())))

    def start(self, position: Tensor) -> Tensor:
        """The parameter's first value, given the float weight's positions."""
        raise NotImplementedError

    def soft_position(self) -> Tensor:
        """Positions as training sees them, before clipping."""
        raise NotImplementedError

    def hard_position(self) -> Tensor:
        """Whole positions, before clipping."""
        raise NotImplementedError

    def soft(self) -> Tensor:
        """The weight that training sees, with gradients for ``moved`` and for a learned scale."""
        return self._weight(self.soft_position())

    @torch.no_grad()
    def hard(self) -> Tensor:
        """The weight on the grid."""
        return self._weight(self.hard_position())

    def regulariser(self, beta: float) -> Tensor | None:  # noqa: ARG002 - for those that push
        """What pushes the rounding to a decision; None for variables that need no push."""
        return None

    def project(self) -> None:
        """Puts the parameter back where it may be, after an update."""

    def undecided(self) -> float:
        """Share of the weights that hardening would still change visibly."""
        return 0.0

    def _weight(self, position: Tensor) -> Tensor:
        position = self.grid.clip(position)
        if self.selected is not None:
            position = torch.where(self.selected, position, self.fixed)
        return self.grid.weight(position)


class RoundSigmoid(Variable):
    """AdaRound: ``q = ⌊w/Δ⌋ + h(α)``, up or down, with the rectified sigmoid h.

    α starts where h(α) is the fractional part, so that the soft weight is the float weight. The
    regulariser is ``Σ (1 - |2h - 1|^β)``. Nagel et al. 2020, equations 21 to 24.
    """

    def start(self, position: Tensor) -> Tensor:
        """``α₀ = -log(1.2 / (r + 0.1) - 1)`` for fractional parts r."""
        self.floor = position.floor()
        part = position - self.floor
        return -torch.log((ZETA - GAMMA) / (part - GAMMA) - 1)

    def h(self) -> Tensor:
        """The rectified sigmoid of α, in [0, 1]."""
        return ((ZETA - GAMMA) * torch.sigmoid(self.moved) + GAMMA).clamp(0, 1)

    def soft_position(self) -> Tensor:
        """Between down and up."""
        return self.floor + self.h()

    def hard_position(self) -> Tensor:
        """Up where α ≥ 0."""
        return self.floor + (self.moved >= 0)

    def regulariser(self, beta: float) -> Tensor:
        """``Σ (1 - |2h - 1|^β)``: 0 where decided, 1 at h = ½."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    def undecided(self) -> float:
        """Share with h in (0.05, 0.95)."""
        h = self.h()
        return float(((h > 0.05) & (h < 0.95)).float().mean())


class _StraightThrough(Variable):
    """Rounds in the forward pass; gradients pass as if it did not, and are zero beyond the clip."""

    def real_position(self) -> Tensor:
        """The positions that are rounded."""
        raise NotImplementedError

    def soft(self) -> Tensor:
        """The weight on the grid; its gradient is that of the unrounded position."""
        real = self.grid.clip(self.real_position())
        # Through g rather than before it: a power's slope at a whole position may be zero.
        between = self.grid.shape(real)
        shape = between + (self.grid.shape(real.round()) - between).detach()
        if self.selected is not None:
            shape = torch.where(self.selected, shape, self.grid.shape(self.fixed))
        return self.grid.scale * shape

    def hard_position(self) -> Tensor:
        """The nearest whole positions."""
        return self.grid.clip(self.real_position()).round()


class Free(_StraightThrough):
    """The free grid: ``q = clip(⌊v⌉)`` with v itself learned, so any level may be reached."""

    def start(self, position: Tensor) -> Tensor:
        """``v₀ = w/Δ``."""
        return position.clone()

    def real_position(self) -> Tensor:
        """V."""
        return self.moved


class Offset(_StraightThrough):
    """An additive offset: ``q = clip(⌊w/Δ + ε⌉)`` with ε in [-½, ½], so up or down."""

    def start(self, position: Tensor) -> Tensor:
        """``ε₀ = 0``: round to nearest."""
        self.base = position
        return torch.zeros_like(position)

    def real_position(self) -> Tensor:
        """``w/Δ + ε``."""
        return self.base + self.moved

    @torch.no_grad()
    def project(self) -> None:
        """Keeps ε in [-½, ½]."""
        self.moved.clamp_(-0.5, 0.5)


class TanhOffset(_StraightThrough):
    """A soft offset: ``q = clip(⌊w/Δ + ½ tanh θ⌉)``, so up or down."""

    def start(self, position: Tensor) -> Tensor:
        """``θ₀ = 0``: round to nearest."""
        self.base = position
        return torch.zeros_like(position)

    def real_position(self) -> Tensor:
        """``w/Δ + ½ tanh θ``."""
        return self.base + 0.5 * self.moved.tanh()


VARIABLES: dict[str, type[Variable]] = {
    "round_sigmoid": RoundSigmoid,
    "free": Free,
    "offset": Offset,
    "tanh": TanhOffset,
}


def variable_for(name: str) -> type[Variable]:
    """The class behind ``method.variable``."""
    check_choice("variable_for", "variable", name, VARIABLES)
    return VARIABLES[name]
