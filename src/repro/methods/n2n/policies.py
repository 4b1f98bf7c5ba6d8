"""Recurrent policies that read a description of each layer and say what to do with it.

Both know the edit whose actions they choose, and offer ``sample(architecture, count, generator)``:
tables of actions (count, …), and ``log_probs(architecture, actions)``: the logarithms of their
probabilities and the entropies, both of the shape of the tables. Entries that change nothing are
drawn only if ``everywhere``, as in the released code; otherwise they hold the action that changes
nothing. Legend of shapes: M tables, T layers, V variables of a layer, F features, A actions,
H hidden units, S = T·V steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repro.knobs import Count, Inside, checked
from repro.methods.n2n.architecture import KINDS, Architecture, rows
from repro.methods.n2n.edits import Removal, Shrinkage

# What the features of a layer are divided by, so that they are about one.
SCALES = {"kind": 10, "kernel": 3, "stride": 2, "outputs": 512, "padding": 1}
SKIP_SCALE = 5
COLUMNS = {name: column for column, name in enumerate(SCALES)}


def describe(architecture: Architecture, raw: bool = False, skips: bool = False) -> Tensor:
    """What a policy reads of an architecture: (T, 5) kind, kernel, stride, outputs, padding.

    Args:
        architecture: of T layers.
        raw: whole numbers up to 512, as in the released code, instead of numbers about one.
        skips: two columns more, the layers from the start and to the end of the residual block.
    """
    table = []
    for row in rows(architecture):
        layer = row.layer
        own = [KINDS[layer.kind], layer.kernel, layer.stride, layer.outputs, layer.padding]
        table.append(own + [row.place, row.to_end] * skips)
    x_TF = torch.tensor(table, dtype=torch.float32)
    scales = [*SCALES.values(), *[SKIP_SCALE] * (2 * skips)]
    return x_TF if raw else x_TF / torch.tensor(scales)


def draw(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Actions (...,) with log-probabilities (..., A), by random numbers of the CPU."""
    u = torch.rand(log_probs.shape[:-1], generator=generator).to(log_probs.device)
    below = log_probs.exp().cumsum(-1)[..., :-1] <= u[..., None]
    return below.sum(-1)


def of_actions(log_probs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of actions (...,), and entropies in nat (...,), of `log_probs` (..., A)."""
    chosen = log_probs.gather(-1, actions[..., None]).squeeze(-1)
    return chosen, -(log_probs.exp() * log_probs).sum(-1)


class RemovalPolicy(nn.Module):
    """Stage 1: a bidirectional LSTM over the layers, and two logits for each of them.

    Args:
        edit: what the actions do.
        hidden: units of a cell.
        layers: of cells.
        raw: see `describe`.
        skips: likewise.
        keep_rate: start by keeping every layer with this probability; None for fresh weights, which
            are near one half.
    """

    @checked
    def __init__(
        self,
        edit: Removal,
        hidden: Count = 30,
        layers: Count = 2,
        raw: bool = False,
        skips: bool = False,
        keep_rate: Inside | None = None,
    ) -> None:
        super().__init__()
        self.edit, self.raw, self.skips = edit, raw, skips
        self.cells = nn.LSTM(7 if skips else 5, hidden, layers, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)
        if keep_rate is not None:
            self.keep_all_alike(keep_rate)

    @torch.no_grad()
    def keep_all_alike(self, rate: float) -> None:
        """Makes every layer's probability of being kept the same; the cells stay as they are."""
        self.head.weight.zero_()
        self.head.bias.copy_(torch.tensor([math.log1p(-rate), math.log(rate)]))

    def distribution(self, architecture: Architecture) -> Tensor:
        """Log-probabilities (T, 2) of removing and of keeping each layer."""
        x_TF = describe(architecture, self.raw, self.skips).to(self.head.weight)
        h_TH, _ = self.cells(x_TF)
        log_probs: Tensor = self.head(h_TH).log_softmax(-1)
        return log_probs

    @torch.no_grad()
    def keep_rate(self, architecture: Architecture) -> float:
        """The mean probability of keeping a layer that may be removed."""
        keeps_T = self.distribution(architecture)[:, 1].exp().cpu()
        return float(keeps_T[self.edit.free(architecture)].mean())

    @torch.no_grad()
    def sample(
        self,
        architecture: Architecture,
        count: int,
        generator: torch.Generator,
        everywhere: bool = False,
    ) -> Tensor:
        """Tables (M, T)."""
        drawn_MT = draw(self.distribution(architecture).expand(count, -1, -1), generator)
        free_T = self.edit.free(architecture).to(drawn_MT.device)
        return drawn_MT.where(free_T | everywhere, self.edit.identity)

    def log_probs(self, architecture: Architecture, actions_MT: Tensor) -> tuple[Tensor, Tensor]:
        """Of tables (M, T): log-probabilities and entropies (M, T)."""
        log_probs_MTA = self.distribution(architecture).expand(len(actions_MT), -1, -1)
        return of_actions(log_probs_MTA, actions_MT)


class ShrinkagePolicy(nn.Module):
    """Stage 2: an LSTM that decides variable after variable, and sees what it decided before.

    Its input is the layer's description with the factors that were chosen for it so far, and the
    factor that was chosen last.

    Args:
        edit: what the actions do.
        hidden: units of a cell.
        layers: of cells.
        raw: see `describe`.
        skips: likewise.
        frozen_cells: train the output layer alone, as the released code does unawares.
    """

    @checked
    def __init__(
        self,
        edit: Shrinkage,
        hidden: Count = 30,
        layers: Count = 2,
        raw: bool = False,
        skips: bool = False,
        frozen_cells: bool = False,
    ) -> None:
        super().__init__()
        self.edit, self.raw, self.skips = edit, raw, skips
        self.cells = nn.LSTM(8 if skips else 6, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, edit.choices)
        self.cells.requires_grad_(not frozen_cells)

    @torch.no_grad()
    def sample(
        self,
        architecture: Architecture,
        count: int,
        generator: torch.Generator,
        everywhere: bool = False,
    ) -> Tensor:
        """Tables (M, T, V)."""
        factors, drawn_TV = self._factors(), (self.edit.free(architecture) | everywhere).tolist()
        x_TF = describe(architecture, self.raw, self.skips).to(self.head.weight)
        last_M1, state = x_TF.new_ones(count, 1), None
        actions = []
        for x_F, drawn_V in zip(x_TF, drawn_TV, strict=True):
            x_MF = x_F.repeat(count, 1)
            for variable, is_drawn in zip(self.edit.variables, drawn_V, strict=True):
                step_M1F = torch.cat([x_MF, last_M1], 1)[:, None]
                h_M1H, state = self.cells(step_M1F, state)
                action_M = draw(self.head(h_M1H[:, 0]).log_softmax(-1), generator)
                action_M = action_M if is_drawn else torch.full_like(action_M, self.edit.identity)
                last_M1 = factors[action_M][:, None]
                x_MF[:, COLUMNS[variable]] *= last_M1[:, 0]
                actions.append(action_M)
        return torch.stack(actions, 1).view(count, len(x_TF), len(self.edit.variables))

    def log_probs(self, architecture: Architecture, actions_MTV: Tensor) -> tuple[Tensor, Tensor]:
        """Of tables (M, T, V): log-probabilities and entropies (M, T, V)."""
        x_MSF = self.inputs(architecture, actions_MTV)
        h_MSH, _ = self.cells(x_MSF)
        log_probs = self.head(h_MSH).log_softmax(-1).view(*actions_MTV.shape, -1)
        return of_actions(log_probs, actions_MTV)

    def inputs(self, architecture: Architecture, actions_MTV: Tensor) -> Tensor:
        """What the cells read where these actions are taken: (M, T·V, F + 1)."""
        x_TF = describe(architecture, self.raw, self.skips).to(self.head.weight)
        factors_MTV = self._factors()[actions_MTV]
        M, _, V = actions_MTV.shape
        x_MTVF = x_TF[:, None].repeat(M, 1, V, 1)
        for number, variable in enumerate(self.edit.variables):
            x_MTVF[:, :, number + 1 :, COLUMNS[variable]] *= factors_MTV[:, :, number, None]
        last_MS = torch.cat([x_TF.new_ones(M, 1), factors_MTV.flatten(1)[:, :-1]], 1)
        return torch.cat([x_MTVF.flatten(1, 2), last_MS[..., None]], -1)

    def _factors(self) -> Tensor:
        return self.head.weight.new_tensor(list(self.edit.factors))
