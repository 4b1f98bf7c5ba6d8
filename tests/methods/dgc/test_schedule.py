"""Warm-up densities."""

import pytest

from repro.errors import UserError
from repro.methods.dgc import density_schedule


def test_paper_schedule():
    densities = density_schedule(0.001)
    sparsity = [round(100 * (1 - density), 4) for density in densities]
    assert sparsity == [75, 93.75, 98.4375, 99.6094, 99.9]


def test_official_schedule():
    densities = density_schedule(0.001, 5, "official")
    assert (densities[1], densities[3]) == (0.1, 0.01)  # exactly, or an entry more is sent
    assert [round(density, 5) for density in densities] == [
        0.31623,
        0.1,
        0.03162,
        0.01,
        0.00316,
        0.001,
    ]


def test_presets_never_fall_below_the_target():
    assert density_schedule(0.1, 4, "paper") == [0.25, 0.1, 0.1, 0.1, 0.1]


def test_other_warm_ups():
    assert density_schedule(0.01, 2, "dense") == [1, 1, 0.01]
    assert density_schedule(0.01, 0) == [0.01]
    assert density_schedule(0.01, 2, [0.5, 0.1]) == [0.5, 0.1, 0.01]
    assert density_schedule(0.01, 1, [0.5, 0.1]) == [0.5, 0.01]
    assert density_schedule(1, 3, "dense") == [1, 1, 1, 1]
    assert density_schedule(1, 4, "paper") == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("ratio", "epochs", "densities", "message"),
    [
        (0, 4, "paper", "ratio lies in \\(0, 1\\], not 0"),
        (-0.1, 4, "paper", "in \\(0, 1\\]"),
        (1.5, 4, "paper", "in \\(0, 1\\], not 1.5"),
        (float("nan"), 4, "paper", "in \\(0, 1\\]"),
        (0.01, -1, "paper", "warmup_epochs"),
        (0.01, 4, "papers", "Did you mean 'paper'"),
        (0.01, 3, [0.5, 0.1], "one value per epoch"),
        (0.01, 2, [0.5, 0.0], "\\(0, 1\\]"),
        (0.01, 2, [0.5, 1.0], "cannot follow"),
        (1.0, 1, [0.5], "cannot follow"),
    ],
)
def test_wrong_schedules_are_refused_in_one_line(ratio, epochs, densities, message):
    with pytest.raises(UserError, match=message) as error:
        density_schedule(ratio, epochs, densities)
    assert "\n" not in str(error.value)
