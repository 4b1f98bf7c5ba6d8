"""Whole layers and networks: starts, learners, permutations, bits, streaming."""

from __future__ import annotations

import copy
import doctest
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repro.methods.jlcm as package
from repro.errors import UserError
from repro.methods.jlcm import CodebookCompression, Recipe, compress_blocks, permute_neurons
from repro.methods.jlcm.learners import Layer, _sweep, kmeans_start
from repro.models import Llama, PlainCNN
from repro.toolbox.codebooks import CodedWeight, memory_bits

QUICK: dict[str, Any] = {"iterations": 8, "batch_size": 16}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return PlainCNN([1, 8, 8], 10, widths=[4, 4, 6, 6], hidden=8).eval()


def compressed(model: nn.Module, x: Tensor, **settings: Any) -> CodebookCompression:
    work = CodebookCompression(copy.deepcopy(model), Recipe(**{**QUICK, **settings}), x)
    for _ in work:
        pass
    return work


def correlated(**settings: Any) -> float:
    """Relative error of a linear layer of correlated inputs."""
    layer = nn.Linear(12, 16)
    layer.weight.data = seeded(16, 12)
    x = seeded(256, 4, seed=1) @ seeded(4, 12, seed=2) + 0.1 * seeded(256, 12, seed=3)
    work = CodebookCompression(nn.Sequential(layer), Recipe(**{**QUICK, **settings}), x)
    (report,) = work
    return report.error


def of_weight(weight: Tensor, groups: Tensor | None = None, **more: Any) -> Layer:
    """A layer without inputs, for what looks at weights only."""
    rows = torch.zeros(len(weight), dtype=torch.int64) if groups is None else groups
    return Layer(nn.Linear(1, 1), weight, rows, torch.empty(0), torch.empty(0), **more)


def test_the_docstrings_loop_runs() -> None:
    assert doctest.testmod(package).failed == 0


# -- The start --


def test_no_iterations_are_the_start() -> None:
    x = seeded(32, 1, 8, 8)
    start = compressed(small_cnn(), x, learner="start")
    for how in ({"learner": "joint"}, {"learner": "joint", "mapping_start": "distance"}):
        none = compressed(small_cnn(), x, iterations=0, **how)
        for layer, coded in none.coded.items():
            assert torch.equal(coded.weight(), start.coded[layer].weight())


def test_scales_of_one_group_are_one_codebook() -> None:
    weight = seeded(8, 30)
    books = kmeans_start(of_weight(weight), Recipe())
    scales = kmeans_start(of_weight(weight), Recipe(variant="scales"))
    assert torch.equal(books.codes, scales.codes)
    torch.testing.assert_close(books.weight(), scales.weight(), rtol=2e-3, atol=1e-4)
    assert books.bits() == scales.bits() - 16


def test_scales_fit_rows_that_differ_by_a_factor() -> None:
    shape = seeded(1, 40)
    weight = torch.cat([shape, 3 * shape, shape, 3 * shape])
    groups = torch.tensor([0, 1, 0, 1])
    coded = kmeans_start(of_weight(weight, groups), Recipe(variant="scales"))
    torch.testing.assert_close(coded.weight()[1], 3 * coded.weight()[0], rtol=3e-3, atol=1e-3)
    assert coded.codebooks.shape == (1, 4)


def test_as_many_values_as_weights_are_exact_and_scaling_keeps_codes() -> None:
    weight = torch.tensor([[0.5, -1.0, 2.0, 0.5], [2.0, 2.0, -1.0, -1.0]])
    assert torch.equal(kmeans_start(of_weight(weight), Recipe(k=4)).weight(), weight)
    weight = seeded(8, 30)
    first, second = (kmeans_start(of_weight(w), Recipe()).codes for w in (weight, 8 * weight))
    assert torch.equal(first, second)


@pytest.mark.parametrize("weighted", [False, True])
def test_groups_of_any_size_are_those_of_each_alone(weighted: bool) -> None:
    weight, groups = seeded(7, 30), torch.tensor([0, 0, 1, 0, 2, 2, 1])
    importance = seeded(7, 30, seed=1).square() if weighted else None
    whole = kmeans_start(of_weight(weight, groups, importance=importance), Recipe())
    for group in range(3):
        mine = groups == group
        part = None if importance is None else importance[mine]
        alone = kmeans_start(of_weight(weight[mine], importance=part), Recipe())
        assert torch.equal(whole.weight()[mine], alone.weight())


def test_importance_is_the_sum_of_squared_gradients() -> None:
    model, x, y = small_cnn(), seeded(5, 1, 8, 8), torch.arange(5)
    work = CodebookCompression(copy.deepcopy(model), Recipe(importance="gradients"), x, y)
    weight = model.get_parameter("stages.0.2.weight")
    expected = torch.zeros_like(weight)
    for i in range(5):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        expected += torch.autograd.grad(loss, weight)[0].square()
    torch.testing.assert_close(work.importance()["stages.0.2"], expected)


# -- Learners --


@pytest.mark.parametrize(
    "settings",
    [
        {"mapping_lr": 0.5},
        {"mapping_lr": 0.5, "variant": "scales", "groups": 4, "edge_groups": 4},
        {"mapping_lr": 0.01, "mapping_optimizer": "adam"},
        {"mapping_lr": 0.5, "mapping_start": "distance"},
        {"mapping_lr": 0.1, "train_codebook": False},
        {"train_mapping": False},
        {"learner": "alternate"},
        {"learner": "soft", "mapping_lr": 0.03},
    ],
)
def test_learning_improves_on_its_start(settings: dict[str, Any]) -> None:
    groups = {k: v for k, v in settings.items() if k in ("variant", "groups", "edge_groups")}
    start = correlated(learner="start", **groups)
    how = {"iterations": 200, "batch_size": 64, "codebook_lr": 3e-3, **settings}
    assert correlated(**how) < 0.97 * start


def test_a_learned_uniform_grid_improves_on_the_nearest() -> None:
    nearest = correlated(learner="uniform", iterations=0)
    learned = correlated(learner="uniform", mapping_lr=0.02, iterations=200, batch_size=64)
    assert learned < 0.9 * nearest


def test_uniform_values_are_equidistant_and_nearest_without_iterations() -> None:
    work = compressed(small_cnn(), seeded(32, 1, 8, 8), learner="uniform", iterations=0)
    for layer, coded in work.coded.items():
        gaps = coded.codebooks.float().diff(dim=1)
        torch.testing.assert_close(gaps, gaps[:, :1].expand_as(gaps), rtol=0.02, atol=1e-3)
        distance = (work.float_weight(layer)[..., None] - coded.codebooks[0].float()).abs()
        error = (work.float_weight(layer) - coded.weight()).abs()
        torch.testing.assert_close(error, distance.min(-1).values, rtol=0.01, atol=1e-3)


def test_what_is_not_trained_stays() -> None:
    x = seeded(32, 1, 8, 8)
    start = compressed(small_cnn(), x, learner="start").coded
    books = compressed(small_cnn(), x, train_mapping=False).coded
    codes = compressed(small_cnn(), x, train_codebook=False, mapping_lr=5.0).coded
    first = "stages.0.0"
    assert torch.equal(books[first].codes, start[first].codes)
    assert not torch.equal(books[first].codebooks, start[first].codebooks)
    assert torch.equal(codes[first].codebooks, start[first].codebooks)
    assert not torch.equal(codes[first].codes, start[first].codes)


def test_flips_and_jumps_are_counted_in_the_starts_order() -> None:
    work = CodebookCompression(
        small_cnn(), Recipe(**QUICK, mapping_lr=50.0, kernel="lin"), seeded(32, 1, 8, 8)
    )
    report = work.step(0)
    start = kmeans_start(work.layer(work.units[0]), work.recipe).codes.int()
    moved = (work.coded["stages.0.0"].codes.int() - start).abs()
    assert report.flips == int((moved >= 1).sum()) > report.jumps == int((moved >= 2).sum()) > 0


def test_a_sweep_takes_the_best_value_of_each_weight_in_turn() -> None:
    tables = seeded(3, 4).sort(1).values
    codes = torch.randint(4, (3, 6), generator=torch.Generator().manual_seed(0))
    x, target = seeded(50, 6), seeded(50, 3, seed=1)

    def error(codes: Tensor) -> Tensor:
        return (target - x @ tables.gather(1, codes).T).square().sum(0)

    found = _sweep(tables, codes, x.T @ x, target.T @ x)
    expected = codes.clone()
    for column in range(6):
        tries = []
        for value in range(4):
            expected[:, column] = value
            tries.append(error(expected))
        expected[:, column] = torch.stack(tries).argmin(0)
    assert torch.equal(found, expected)
    assert (error(found) <= error(codes)).all()
    for _ in range(20):
        found = _sweep(tables, found, x.T @ x, target.T @ x)
    best = min(
        float(error(torch.tensor([c] * 3))[0]) for c in itertools.product(range(4), repeat=6)
    )
    assert best <= float(error(found)[0]) * (1 + 1e-6)


def test_products_of_vectors() -> None:
    work = compressed(small_cnn(), seeded(32, 1, 8, 8), learner="product", k=4, vector=4)
    weight = work.model.get_parameter("head.3.weight")  # (10, 8): twenty vectors
    assert len(weight.view(-1, 4).unique(dim=0)) <= 4
    assert work.stored["head.3"] == 20 * 2 + 16 * 16
    assert work.stored["stages.0.0"] == 32 * 36  # nine columns are no whole vectors


# -- Networks --


def test_layers_see_the_compressed_prefix_and_learn_behind_their_activation() -> None:
    model, x = small_cnn(), seeded(32, 1, 8, 8)
    work = CodebookCompression(copy.deepcopy(model), Recipe(**QUICK), x)
    work.step(0)
    layer = work.layer(work.units[1])
    torch.testing.assert_close(layer.target, model.stages[0][:3](x))
    torch.testing.assert_close(layer.x, work.model.stages[0][:2](x))
    weight, index = layer.rows.clone(), torch.arange(32)
    out = layer.module(layer.x)
    target = layer.target.relu()
    expected = (out.relu() - target).square().mean() / target.square().mean()
    torch.testing.assert_close(layer.loss()(weight, index), expected)
    last = work.layer(work.units[-1])
    assert last.activation is None


@pytest.mark.parametrize("group_by", ["std", "random"])
def test_renumbered_neurons_learn_the_same(group_by: str) -> None:
    model, x = small_cnn(), seeded(64, 1, 8, 8)
    how = {"groups": 2, "group_by": group_by, "mapping_lr": 0.5}
    plain, permuted = (compressed(model, x, permute=p, **how) for p in (False, True))
    assert {link.producers[0] for link in permuted.links} == set(plain.layers[:-1])
    undone = permuted.model
    for link in reversed(permuted.links):
        order = plain.groups[link.producers[0]].argsort(stable=True)
        permute_neurons(undone, link, order.argsort())
    for layer in plain.layers:
        torch.testing.assert_close(
            undone.get_parameter(f"{layer}.weight"), plain.model.get_parameter(f"{layer}.weight")
        )
        assert permuted.coded[layer].implied
    # What need not be listed is saved.
    assert permuted.bits()[0] < plain.bits()[0]


def test_bits_are_the_formulas_and_equal_for_all_learners() -> None:
    x, found = seeded(32, 1, 8, 8), set()
    for settings in (
        {"learner": "start"}, {}, {"learner": "alternate"}, {"learner": "soft"},
        {"learner": "uniform", "mapping_lr": 0.01}, {"importance": "gradients", "learner": "start"},
        {"kernel": "lin"}, {"mapping_optimizer": "adam"},
    ):  # fmt: skip
        work = compressed(small_cnn(), x, **{"iterations": 2, **settings})
        found.add(work.bits())
    assert found == {(work.bits()[0], memory_bits(small_cnn(), work.layers, 4))}


def decoder() -> tuple[Llama, Tensor]:
    torch.manual_seed(0)
    model = Llama(11, 8, 2, 2, mlp_width=12, init_std=0.5).eval()
    return model, torch.randint(11, (8, 6), generator=torch.Generator().manual_seed(0))


def test_streaming_goes_block_by_block_and_goes_on_from_codes() -> None:
    model, tokens = decoder()
    recipe = Recipe(**QUICK, mapping_lr=0.5, groups=2, edge_groups=2)
    done: dict[str, CodedWeight] = {}
    straight = copy.deepcopy(model)
    reports = list(compress_blocks(straight, recipe, tokens, batch_size=4, done=done))
    assert [len(each) for each in reports] == [7, 7]
    first = {name: coded for name, coded in done.items() if name.startswith("0.")}
    resumed = copy.deepcopy(model)
    again = list(compress_blocks(resumed, recipe, tokens, batch_size=4, done=first))
    assert [len(each) for each in again] == [0, 7]
    with torch.no_grad():
        assert torch.equal(resumed(tokens), straight(tokens))
        assert not torch.equal(straight(tokens), model(tokens))
    values = straight.blocks[1].self_attn.v_proj.weight.unique()
    assert len(values) <= 8
    assert torch.equal(straight.lm_head.weight, model.lm_head.weight)


def test_streaming_sees_compressed_inputs_and_float_targets() -> None:
    """The second block alone, given both inputs, becomes what it became in the stream."""
    model, tokens = decoder()
    recipe = Recipe(**QUICK, mapping_lr=0.5)
    done: dict[str, CodedWeight] = {}
    streamed = copy.deepcopy(model)
    list(compress_blocks(streamed, recipe, tokens, batch_size=8, done=done))
    with torch.no_grad():
        x_float = model.blocks[0](model.embed(tokens))
        x = streamed.blocks[0](model.embed(tokens))
    work = CodebookCompression(
        copy.deepcopy(model.blocks[1]), recipe, x, seed=1, x_reference=x_float
    )
    for _ in work:
        pass
    for layer, coded in work.coded.items():
        assert torch.equal(coded.weight(), done[f"1.{layer}"].weight())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "inverse"}, "Recipe.kernel is"),
        ({"k": 1}, "Recipe.k"),
        ({"learner": "uniform", "k": 6}, "power of two"),
        ({"learner": "product", "variant": "scales"}, "no method.variant=scales"),
        ({"group_by": "mean"}, "Recipe.group_by is"),
    ],
)
def test_recipes_refuse(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**settings)


def test_grouped_convolutions_have_no_coordinate_descent() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(UserError, match=r"method\.skip"):
        compressed(model, seeded(4, 4, 5, 5), learner="alternate")
