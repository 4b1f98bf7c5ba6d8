"""What puts one layer's weight into codebooks: k-means, joint learning, and its rivals.

Suffixes of tensor names: G groups of rows, R rows, N columns, k values, V vector entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.func import functional_call

from repro.methods.jlcm.mapping import mapped, start_logits
from repro.methods.jlcm.recipe import Recipe
from repro.toolbox.codebooks import CODEBOOK_BITS, CodedWeight, code_bits, kmeans_1d, nearest_codes
from repro.toolbox.reconstruction import batches, fit_grid, input_matrix, on_device, precise
from repro.toolbox.reconstruction.variables import Free

LAST_TEMPERATURE = 0.01  # of the soft learner, as a share of the first


@dataclass
class Layer:
    """A layer, and what reconstruction knows of it.

    Attributes:
        module: linear or convolution.
        weight: float weight (R, …).
        groups: (R,) group of each row.
        x: inputs (M, …) from the compressed prefix.
        target: outputs (M, …) of the float layer on the float prefix, before the activation.
        activation: what follows it, element by element; None: nothing.
        importance: of each weight, shaped like it, for k-means; None: all alike.
        implied: groups need no table.
    """

    module: nn.Module
    weight: Tensor
    groups: Tensor
    x: Tensor
    target: Tensor
    activation: nn.Module | None = None
    importance: Tensor | None = None
    implied: bool = True

    @property
    def rows(self) -> Tensor:
        """The weight as rows (R, N)."""
        return self.weight.flatten(1)

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1

    def activated(self, output: Tensor) -> Tensor:
        """Outputs behind the activation."""
        return output if self.activation is None else self.activation(output)

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What maps a weight (R, N) and numbers of examples to their error.

        It is the squared error over the mean square of all targets.
        """
        dtype = self.module.get_parameter("weight").dtype
        target = precise(self.activated(self.target))
        power = target.square().mean().clamp(min=1e-30)

        def of(weight_RN: Tensor, index: Tensor) -> Tensor:
            weight = weight_RN.view_as(self.weight).to(dtype)
            out = functional_call(self.module, {"weight": weight}, (self.x[index],))
            return (precise(self.activated(out)) - target[index]).square().mean() / power

        return of

    def coded(self, codes_RN: Tensor, codebooks: Tensor, scales: Tensor | None) -> CodedWeight:
        """The layer's weight as it is stored."""
        return CodedWeight(
            codes_RN.to(torch.uint8),
            codebooks.detach().half(),
            self.groups,
            None if scales is None else scales.detach().half(),
            tuple(self.weight.shape),
            self.implied,
        )


# -- The start --


def kmeans_start(layer: Layer, recipe: Recipe) -> CodedWeight:
    """k-means of the weights of each group; with scales, of all rows over their group's deviation.

    Args:
        layer: to be put into codebooks.
        recipe: k, variant and iterations.
    """
    rows_RN, scales_G = layer.rows, None
    importance_RN = None if layer.importance is None else layer.importance.flatten(1)
    if recipe.variant == "scales":
        scales_G = _spread(layer)
        scaled_RN = rows_RN / scales_G[layer.groups][:, None]
        weights = None if importance_RN is None else importance_RN.flatten()[None]
        codebooks_Gk = kmeans_1d(
            scaled_RN.flatten()[None], recipe.k, weights, recipe.kmeans_iterations
        )
    else:
        values_GM, weights_GM = _by_group(rows_RN, importance_RN, layer.groups, layer.count)
        codebooks_Gk = kmeans_1d(values_GM, recipe.k, weights_GM, recipe.kmeans_iterations)
    coded = layer.coded(torch.zeros_like(rows_RN, dtype=torch.uint8), codebooks_Gk, scales_G)
    return layer.coded(nearest_codes(rows_RN, coded.tables[layer.groups]), codebooks_Gk, scales_G)


def _spread(layer: Layer) -> Tensor:
    """Root mean square of the weights of each group, (G,)."""
    squares_R = layer.rows.square().mean(1)
    sums = squares_R.new_zeros(layer.count).index_add_(0, layer.groups, squares_R)
    counts = torch.bincount(layer.groups, minlength=layer.count)
    return (sums / counts).sqrt().clamp(min=1e-6)


def _by_group(
    rows_RN: Tensor, importance_RN: Tensor | None, groups_R: Tensor, count: int
) -> tuple[Tensor, Tensor | None]:
    """Weights (G, M) of each group, and how much each counts: what fills a group up, nothing."""
    sizes = torch.bincount(groups_R, minlength=count)
    if int(sizes.min()) == int(sizes.max()):
        order = groups_R.argsort(stable=True)
        weights_GM = None if importance_RN is None else importance_RN[order].view(count, -1)
        return rows_RN[order].view(count, -1), weights_GM
    longest = int(sizes.max())
    values = rows_RN.new_zeros(count, longest, rows_RN.shape[1])
    weights = torch.zeros_like(values)
    for group in range(count):
        members = (groups_R == group).nonzero().flatten()
        values[group, : len(members)] = rows_RN[members]
        values[group, len(members) :] = rows_RN[members[0]]
        weights[group, : len(members)] = 1.0 if importance_RN is None else importance_RN[members]
        if not weights[group].any():  # k-means would count what only fills up
            weights[group, : len(members)] = 1.0
    return values.flatten(1), weights.flatten(1)


# -- Learning --


def learn_jointly(
    layer: Layer, start: CodedWeight, recipe: Recipe, generator: torch.Generator
) -> CodedWeight:
    """Descends codebooks, scales and mapping on the layer's outputs.

    Args:
        layer: to be put into codebooks.
        start: where to begin.
        recipe: what is learned, and how.
        generator: of batches, and of the random kernel.
    """
    codebooks, scales = _parameters(start, recipe.train_codebook)
    tables_Rk = start.tables[layer.groups]
    logits = start_logits(
        layer.rows, start.codes.long(), tables_Rk, recipe.mapping_start, recipe.mapping_size
    ).requires_grad_(recipe.train_mapping)
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.train_codebook:
        values = [each for each in (codebooks, scales) if each is not None]
        optimizers.append(torch.optim.Adam(values, recipe.codebook_lr))
    if recipe.train_mapping:
        optimizers.append(
            torch.optim.Adam([logits], recipe.mapping_lr)
            if recipe.mapping_optimizer == "adam"
            else torch.optim.SGD([logits], recipe.mapping_lr, recipe.momentum)
        )
    draws = on_device(generator, logits.device)

    def weight() -> Tensor:
        tables_Gk = _tables(codebooks, scales)
        return mapped(logits, tables_Gk, layer.groups, recipe.kernel, draws)

    _descend(layer, weight, optimizers, recipe, generator, recipe.iterations)
    codes_RN = logits.detach().argmax(-1) if recipe.train_mapping else start.codes
    return layer.coded(codes_RN, codebooks, scales)


def learn_alternately(
    layer: Layer, start: CodedWeight, recipe: Recipe, generator: torch.Generator
) -> CodedWeight:
    """Codebooks by gradients and mapping by coordinate descent, in turns: no mapping gradient.

    A sweep goes through the columns; each weight of a column takes the value that is best for the
    squared error before the activation, given the rest of its row.

    Args:
        layer: to be put into codebooks.
        start: where to begin.
        recipe: iterations and rounds.
        generator: of batches.
    """
    x_MN = precise(input_matrix(layer.module, layer.x))
    target_MR = precise(layer.target)
    target_MR = target_MR.flatten(2).mT if target_MR.dim() == 4 else target_MR
    target_MR = target_MR.flatten(0, -2)
    if (bias := getattr(layer.module, "bias", None)) is not None:
        target_MR = target_MR - bias
    gram_NN, cross_RN = x_MN.T @ x_MN, target_MR.T @ x_MN
    codebooks, scales = _parameters(start, True)
    places_RN = start.codes.long()
    values = [each for each in (codebooks, scales) if each is not None]
    optimizer = torch.optim.Adam(values, recipe.codebook_lr)
    for turn in range(recipe.rounds):
        share = recipe.iterations * (turn + 1) // recipe.rounds
        share -= recipe.iterations * turn // recipe.rounds

        def weight(places_RN: Tensor = places_RN) -> Tensor:
            return _tables(codebooks, scales)[layer.groups].gather(1, places_RN)

        _descend(layer, weight, [optimizer], recipe, generator, share)
        tables_Rk = _tables(codebooks, scales).detach()[layer.groups]
        places_RN = _sweep(tables_Rk, places_RN, gram_NN, cross_RN)
    return layer.coded(places_RN, codebooks, scales)


def _sweep(tables_Rk: Tensor, places_RN: Tensor, gram_NN: Tensor, cross_RN: Tensor) -> Tensor:
    """One pass of coordinate descent over the columns, on ``‖T - X Ŵᵀ‖²``."""
    places_RN = places_RN.clone()
    weight_RN = tables_Rk.gather(1, places_RN)
    residual_RN = cross_RN - weight_RN @ gram_NN
    for column in range(weight_RN.shape[1]):
        power = gram_NN[column, column]
        if power <= 0:
            continue
        best_R = weight_RN[:, column] + residual_RN[:, column] / power
        place_R = (tables_Rk - best_R[:, None]).abs().argmin(1)
        moved_R = tables_Rk.gather(1, place_R[:, None])[:, 0] - weight_RN[:, column]
        weight_RN[:, column] += moved_R
        residual_RN -= moved_R[:, None] * gram_NN[column]
        places_RN[:, column] = place_R
    return places_RN


def learn_softly(
    layer: Layer, start: CodedWeight, recipe: Recipe, generator: torch.Generator
) -> CodedWeight:
    """Weights and codebooks, ``ŵ = Σ_l softmax(-|w - C_l|/τ) C_l``; the nearest value in the end.

    Args:
        layer: to be put into codebooks.
        start: where to begin.
        recipe: rates and temperature.
        generator: of batches.
    """
    codebooks, scales = _parameters(start, True)
    free_RN = layer.rows.clone().requires_grad_()
    gap = _mean_gap(start)
    values = [each for each in (codebooks, scales) if each is not None]
    optimizer = torch.optim.Adam(
        [
            {"params": values, "lr": recipe.codebook_lr},
            {"params": [free_RN], "lr": recipe.mapping_lr * gap},
        ]
    )
    temperatures = torch.logspace(
        0, torch.log10(torch.tensor(LAST_TEMPERATURE)).item(), max(recipe.iterations, 1)
    ).tolist()
    steps = iter([recipe.temperature * gap * share for share in temperatures])

    def weight() -> Tensor:
        tables_R1k = _tables(codebooks, scales)[layer.groups][:, None, :]
        distance_RNk = (free_RN[..., None] - tables_R1k).abs()
        share_RNk = torch.softmax(-distance_RNk / next(steps), -1)
        return (share_RNk * tables_R1k).sum(-1)

    _descend(layer, weight, [optimizer], recipe, generator, recipe.iterations)
    tables_Rk = _tables(codebooks, scales).detach()[layer.groups]
    places_RN = (free_RN.detach()[..., None] - tables_Rk[:, None, :]).abs().argmin(-1)
    return layer.coded(places_RN, codebooks, scales)


def learn_uniformly(layer: Layer, recipe: Recipe, generator: torch.Generator) -> CodedWeight:
    """Equidistant values that stay, and positions between them that are learned (the free grid).

    With no iterations this is rounding to nearest. A scale and a zero point for each group; they
    are stored, and counted, as the k values that they stand for.

    Args:
        layer: to be put into codebooks.
        recipe: k, a power of two, and the rate.
        generator: of batches.
    """
    grids = [
        fit_grid(layer.rows[layer.groups == group], code_bits(recipe.k), per_channel=False)
        for group in range(layer.count)
    ]
    scale_G1 = torch.stack([grid.scale.view(1) for grid in grids])
    low_G1 = torch.stack([grid.low.view(1) for grid in grids])
    high_G1 = torch.stack([grid.high.view(1) for grid in grids])
    grid = type(grids[0])(scale_G1[layer.groups], low_G1[layer.groups], high_G1[layer.groups])
    variable = Free(layer.rows, grid)
    optimizer = torch.optim.Adam([variable.moved], recipe.mapping_lr)
    _descend(layer, variable.soft, [optimizer], recipe, generator, recipe.iterations)
    codes_RN = grid.clip(variable.hard_position()) - grid.low
    levels_k = torch.arange(recipe.k, device=codes_RN.device)
    return layer.coded(codes_RN.round(), scale_G1 * (low_G1 + levels_k), None)


def product_quantised(layer: Layer, recipe: Recipe) -> tuple[Tensor, int]:
    """k-means of vectors of neighbouring columns; a layer shorter than a vector keeps its floats.

    Args:
        layer: to be quantised.
        recipe: k and vector.

    Returns:
        The weight, and its bits.
    """
    rows_RN = layer.rows
    if rows_RN.shape[1] % recipe.vector:
        return layer.weight, 32 * rows_RN.numel()
    vectors_MV = rows_RN.reshape(-1, recipe.vector)
    count = min(recipe.k, len(vectors_MV))
    kmeans = MiniBatchKMeans(count, n_init=1, random_state=0)
    codes = torch.from_numpy(kmeans.fit_predict(vectors_MV.cpu().numpy())).long()
    centres = torch.from_numpy(kmeans.cluster_centers_).half().float().to(rows_RN.device)
    bits = len(vectors_MV) * code_bits(count) + CODEBOOK_BITS * centres.numel()
    return centres[codes.to(rows_RN.device)].view_as(layer.weight), bits


def _descend(
    layer: Layer,
    weight: Callable[[], Tensor],
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    generator: torch.Generator,
    iterations: int,
) -> None:
    """So many updates on the layer's loss, of what gives the weight."""
    loss_of = layer.loss()
    if not optimizers:
        return
    for index in batches(len(layer.x), recipe.batch_size, iterations, generator):
        with torch.enable_grad():
            loss = loss_of(weight(), index.to(layer.x.device))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def _parameters(start: CodedWeight, learned: bool) -> tuple[Tensor, Tensor | None]:
    """Copies of codebooks and scales, in single precision."""
    codebooks = start.codebooks.float().clone().requires_grad_(learned)
    if start.scales is None:
        return codebooks, None
    return codebooks, start.scales.float().clone().requires_grad_(learned)


def _tables(codebooks_Bk: Tensor, scales_G: Tensor | None) -> Tensor:
    """Values by group (G, k)."""
    return codebooks_Bk if scales_G is None else codebooks_Bk * scales_G[:, None]


def _mean_gap(coded: CodedWeight) -> float:
    """The mean distance between neighbouring values, over groups."""
    tables_Gk = coded.tables
    span = (tables_Gk.amax(1) - tables_Gk.amin(1)).mean()
    return max(float(span) / max(tables_Gk.shape[1] - 1, 1), 1e-12)
