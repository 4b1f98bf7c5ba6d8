"""Cuts and weights against the official splits and closed forms."""

import itertools

import pytest

from repro.errors import UserError
from repro.methods.man import block_ends, loss_weight


def official(borders, per_stage):
    """(stage, last unit) pairs as unit numbers, the last block's end added."""
    return [(stage - 1) * per_stage + unit for stage, unit in borders] + [3 * per_stage - 1]


@pytest.mark.parametrize(
    ("modules", "borders"),
    [
        (1, []),
        (2, [(2, 1)]),
        (4, [(1, 2), (2, 1), (3, 0)]),
        (8, [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)]),
    ],
)
def test_resnet32_is_cut_as_in_the_official_code(modules, borders):
    assert block_ends(15, modules) == official(borders, 5)


@pytest.mark.parametrize(("units", "modules"), [(15, 16), (54, 55)])
def test_every_unit_a_block(units, modules):
    assert block_ends(units, modules) == block_ends(units) == list(range(units))


def test_borders_replace_the_rule():
    assert block_ends(54, borders=[11, 25, 39]) == official([(1, 11), (2, 7), (3, 3)], 18)


@pytest.mark.parametrize("modules", range(1, 8))
def test_blocks_cover_all_units(modules):
    ends = block_ends(6, modules)
    assert ends[-1] == 5
    assert ends == sorted(set(ends))
    assert len(ends) in (modules, modules - 1)  # one fewer where the stem alone was a group


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modules": 0}, "method.modules lies between 1 and 7"),
        ({"modules": 8}, "method.modules lies between 1 and 7"),
        ({"borders": [3, 2]}, "rising unit numbers between 0 and 4"),
        ({"borders": [5]}, "rising unit numbers"),
        ({"borders": [-1]}, "rising unit numbers"),
    ],
)
def test_wrong_cuts(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        block_ends(6, **wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_without_units():
    with pytest.raises(UserError, match="has none"):
        block_ends(0)


def test_linear_weights_meet_both_ends():
    weights = [loss_weight(block, 1, 16, 5.0, 0.0) for block in range(1, 16)]
    assert (weights[0], weights[-1]) == (5.0, 0.0)
    steps = [b - a for a, b in itertools.pairwise(weights)]
    assert steps == pytest.approx([-5 / 14] * 14)


def test_official_quirk():
    weights = [loss_weight(1, stage, 16, 5.0, 0.0, "official_quirk") for stage in (1, 2, 3)]
    assert weights == pytest.approx([4.642857, 4.285714, 3.928571], abs=1e-6)
    assert loss_weight(1, 1, 2, 5.0, 0.0, "official_quirk") == 5.0
    assert loss_weight(3, 3, 4, 5.0, 0.0, "official_quirk") < 0  # as in the official code


def test_unknown_schedule():
    with pytest.raises(UserError, match="linear or official_quirk"):
        loss_weight(1, 1, 16, 5.0, 0.0, "cosine")  # type: ignore[arg-type]
