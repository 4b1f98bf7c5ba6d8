"""Architectures: read off published networks, rebuilt to the same function, edited by the rules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.methods.n2n import (
    DESIGNS,
    Architecture,
    Block,
    InvalidArchitectureError,
    Layer,
    Removal,
    Shrinkage,
    build,
    count_parameters,
    dump,
    fresh,
    load,
    of_size,
    read,
    rows,
)
from repro.models import MLP, VGG
from repro.models.vision.resnet_imagenet import ResNetImageNet

IMAGE = [3, 32, 32]
STAGES = {
    11: [[64], [128], [256] * 2, [512] * 2, [512] * 2],
    13: [[64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2],
    19: [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4],
}


def resnet(depth: int = 18, classes: int = 10, device: str = "meta") -> nn.Module:
    with torch.device(device):
        return ResNetImageNet(IMAGE, classes, depth=depth, small_images=True)  # type: ignore[arg-type]


def vgg(depth: int) -> nn.Module:
    with torch.device("meta"):
        return VGG(IMAGE, 10, STAGES[depth], batch_norm=True)


def mlp(*hidden: int) -> nn.Module:
    return MLP([64], 10, hidden, batch_norm=True)


RESNET18, MLP3 = read(resnet()), read(mlp(128, 64, 32))


@pytest.mark.parametrize(
    ("model", "layers", "projections", "parameters"),
    [
        (resnet(18), 45, 6, 11_173_962),
        (resnet(34), 85, 6, 21_282_122),
        (resnet(18, 100), 45, 6, 11_220_132),
        (resnet(34, 100), 85, 6, 21_328_292),
        # One layer fewer than published, which is an average over single pixels.
        (vgg(11), 30, 0, 9_231_114),
        (vgg(13), 36, 0, 9_416_010),
        (vgg(19), 54, 0, 20_040_522),
    ],
)
def test_published_networks_have_the_layers_and_parameters_that_policies_met(
    model: nn.Module, layers: int, projections: int, parameters: int
) -> None:
    architecture = read(model)
    found = rows(architecture)
    assert sum(row.in_shortcut for row in found) == projections
    assert len(found) == layers + projections
    assert count_parameters(architecture, IMAGE) == parameters
    assert sum(each.numel() for each in model.parameters()) == parameters


@pytest.mark.parametrize("model", [resnet(device="cpu"), mlp(16, 8), VGG(IMAGE, 10, STAGES[11])])
def test_a_rebuilt_network_computes_what_the_teacher_does(model: nn.Module) -> None:
    shape = [64] if isinstance(model, MLP) else IMAGE
    twin = build(read(model), shape)
    theirs, ours = model.state_dict().values(), twin.state_dict()
    twin.load_state_dict(dict(zip(ours, theirs, strict=True)))
    x = torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), model.eval()(x))


def test_students_are_fresh_and_share_nothing() -> None:
    teacher = mlp(8)
    first, again, other = (fresh(read(teacher), [64], seed) for seed in (1, 1, 2))
    for mine, same, theirs in zip(
        first.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(mine, same)
        assert mine.data_ptr() != same.data_ptr()
        assert mine.std().isnan() or mine.std() == 0 or not torch.equal(mine, theirs)
    gammas = fresh(read(teacher), [64], 1, uniform_gammas=True)[2].weight
    assert isinstance(gammas, torch.Tensor)
    assert 0 < gammas.min() < gammas.max() < 1


def test_keeping_and_removing_everything() -> None:
    rule = Removal()
    keeps = torch.ones(len(rows(RESNET18)), dtype=torch.int64)
    assert rule.apply(RESNET18, keeps) == RESNET18
    least = rule.apply(RESNET18, 0 * keeps)
    kinds = [row.layer.kind for row in rows(least)]
    # The stem, three strided convolutions and their projections, pooling and the last layer.
    assert kinds == ["conv"] + 3 * ["conv", "conv", "batch_norm"] + ["avg_pool", "linear"]
    assert build(least, IMAGE)(torch.randn(2, *IMAGE)).shape == (2, 10)


def test_what_may_be_removed_of_a_perceptron() -> None:
    kept = Removal(keep=["avg_pool"]).free(MLP3)
    assert kept.tolist() == [False] + [True] * 8 + [False]
    kinds = [row.layer.kind for row in rows(MLP3)]
    free = Removal().free(MLP3).tolist()
    assert [k for k, is_free in zip(kinds, free, strict=True) if is_free] == [
        "batch_norm",
        "relu",
    ] * 3
    only_linear = Removal(keep=[]).apply(MLP3, torch.zeros(10, dtype=torch.int64))
    assert only_linear == (Layer("flatten"), Layer("linear", 128), Layer("linear", 10))


@pytest.mark.parametrize(("doubled", "factor"), [(False, 1), (True, 2)])
def test_an_emptied_block_is_its_shortcut(doubled: bool, factor: int) -> None:
    teacher: Architecture = (Layer("conv", 4, 1, 1), Block((Layer("conv", 4, 3, 1, 1),)))
    teacher = (*teacher, Layer("avg_pool"), Layer("flatten"), Layer("linear", 2))
    emptied = Removal(doubled=doubled).apply(teacher, torch.tensor([1, 0, 1, 1]))
    network, x = build(emptied, [1, 3, 3]), torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(network[1](x), factor * x.relu())


def test_released_rows_are_shifted_behind_projections() -> None:
    table = rows(RESNET18)
    behind = (
        next(i for i, row in enumerate(table) if row.in_shortcut) + 2
    )  # of the first projection
    entries = torch.ones(len(table), dtype=torch.int64)
    entries[behind] = 0
    ours = Removal().apply(RESNET18, entries)
    shifted = Removal(shifted_rows=True).apply(RESNET18, entries.roll(-2))
    assert ours == shifted != RESNET18


def test_shrinking_by_hand() -> None:
    rule = Shrinkage(factors=[0.1, 0.5, 1.0])
    teacher: Architecture = (
        *(Layer("conv", 64, 3, 1, 1), Layer("conv", 64, 3, 2, 1), Layer("max_pool", 0, 2, 2)),
        *(Layer("flatten"), Layer("linear", 10)),
    )
    table = torch.full((4, 4), rule.identity)
    assert rule.apply(teacher, table) == teacher
    shrunk = rule.apply(teacher, 0 * table)
    assert shrunk[0] == Layer("conv", 10, 1, 1, 0)  # kernel 3 x 0.1, and the floor of 10
    assert shrunk[1] == teacher[1]  # strided
    assert shrunk[2] == Layer("max_pool", 0, 1, 1)
    assert shrunk[3:] == teacher[3:]
    assert rule.free(teacher).tolist() == [
        [True, False, True, True], [False] * 4, [True, True, False, False], [False] * 4,
    ]  # fmt: skip
    half = rule.apply(teacher, torch.ones_like(table))
    assert half[0] == Layer("conv", 32, 1, 1, 0)


def shrink_block(rule: Shrinkage, row: int, of: Architecture = RESNET18) -> list[int]:
    """The widths of all convolutions after the outputs of one row were halved."""
    table = torch.full((len(rows(of)), 1), rule.identity)
    table[row] = 0
    student = rule.apply(of, table)
    assert count_parameters(student, IMAGE) <= count_parameters(of, IMAGE)
    return [each.layer.outputs for each in rows(student) if each.layer.kind == "conv"]


def test_widths_of_residual_blocks_fit() -> None:
    rule = Shrinkage(factors=[0.5, 1.0], variables=["outputs"])
    whole = [64] * 5 + [128] * 5 + [256] * 5 + [512] * 5
    # The stem's width is that of all blocks before the first projection.
    assert shrink_block(rule, 0) == [32, 64, 32, 64, 32, *whole[5:]]
    first = next(i for i, row in enumerate(rows(RESNET18)) if row.layer.stride == 2)
    assert shrink_block(rule, first) == [*whole[:5], 64, *whole[6:]]
    # The second convolution of a block with a projection: both, and the block behind.
    assert shrink_block(rule, first + 3) == [*whole[:6], 64, 64, 128, 64, *whole[10:]]
    shifted = Shrinkage(factors=[0.5, 1.0], variables=["outputs"], shifted_rows=True)
    assert shrink_block(shifted, first + 4) == [*whole[:5], 64, *whole[6:]]


def test_a_shrunk_residual_student_runs() -> None:
    rule = Shrinkage(variables=["outputs"])
    table = torch.randint(10, (len(rows(RESNET18)), 1), generator=torch.Generator().manual_seed(0))
    student = rule.apply(RESNET18, table)
    assert build(student, IMAGE)(torch.randn(1, *IMAGE)).shape == (1, 10)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ((Layer("conv", 4, 5, 1, 0), Layer("flatten"), Layer("linear", 2)), [1, 3, 3]),
        ((Layer("flatten"), Layer("linear", 2)), [1, 224, 224]),
        ((Layer("linear", 2),), [1, 4, 4]),
        ((Block((Layer("conv", 8, 1, 1),)),), [4, 3, 3]),
        ((Layer("flatten"), Layer("conv", 4, 1, 1)), [1, 3, 3]),
    ],
)
def test_what_cannot_be_built_says_so(architecture: Architecture, shape: list[int]) -> None:
    with pytest.raises(InvalidArchitectureError):
        count_parameters(architecture, shape)


def test_fewer_inputs_than_asked_for_are_invalid() -> None:
    with pytest.raises(InvalidArchitectureError):
        build(read(mlp(8)), [64], least_inputs=10)


@pytest.mark.parametrize("architecture", [RESNET18, MLP3, read(vgg(11))])
def test_what_is_dumped_is_loaded(architecture: Architecture) -> None:
    assert load(dump(architecture)) == architecture


def test_designs() -> None:
    def kinds(name: str, of: Architecture) -> list[str]:
        return [row.layer.kind for row in rows(DESIGNS[name](of))]

    unit = ["linear", "batch_norm", "relu"]
    assert DESIGNS["whole"](MLP3) == MLP3
    assert kinds("first_layer", MLP3) == [*unit, "linear"]
    assert kinds("half_depth", MLP3) == [*unit, *unit, "linear"]
    widths = [row.layer.outputs for row in rows(DESIGNS["half_width"](MLP3))]
    assert [width for width in widths if width] == [64, 32, 16, 10]
    for name in DESIGNS:
        assert build(DESIGNS[name](RESNET18), IMAGE)(torch.randn(1, *IMAGE)).shape == (1, 10)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_one_factor_for_all_widths_meets_a_size(share: float) -> None:
    wanted = int(share * count_parameters(RESNET18, IMAGE))
    assert 0.95 * wanted < count_parameters(of_size(RESNET18, IMAGE, wanted), IMAGE) <= wanted


def test_unknown_layers_and_factors_are_one_line() -> None:
    with pytest.raises(UserError, match="n2n knows no layer GELU"):
        read(nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    with pytest.raises(UserError, match=r"holds 1\.0"):
        Shrinkage(factors=[0.5])
