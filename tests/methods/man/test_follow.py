"""The momentum copy against its closed form and its limits."""

from typing import Any

import pytest
import torch
from torch import nn

from repro.errors import UserError
from repro.methods.man import EmaOf, copy_of, update_all
from repro.models.parts.residual import BasicBlock


def unit():
    return BasicBlock(4, 4, 1, nn.Identity())


def test_closed_form_towards_a_source_at_rest():
    average = EmaOf(unit(), momentum=0.9)
    start = [p.clone() for p in average.module.parameters()]
    for _ in range(7):
        average.update()
    for now, then, goal in zip(
        average.module.parameters(), start, average.source.parameters(), strict=True
    ):
        torch.testing.assert_close(now, goal + 0.9**7 * (then - goal))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_limits_are_exact(momentum):
    average = EmaOf(unit(), momentum)
    start = [p.clone() for p in average.module.parameters()]
    average.update()
    goal = start if momentum else list(average.source.parameters())
    assert all(map(torch.equal, average.module.parameters(), goal))


def test_fused_update_is_the_plain_loop():
    averages = [EmaOf(unit(), 0.99) for _ in range(3)]
    expected = [
        0.99 * p.detach() + 0.01 * q.detach()
        for a in averages
        for p, q in zip(a.module.parameters(), a.source.parameters(), strict=True)
    ]
    update_all(averages)
    found = [p for a in averages for p in a.module.parameters()]
    torch.testing.assert_close(found, expected)


def test_buffers_are_left_alone():
    average: Any = EmaOf(unit(), 0.0)
    average.source.bn1.running_mean.fill_(3.0)
    average.update()
    assert not average.module.bn1.running_mean.any()


def test_gradient_flows_through_but_not_into_it():
    average = EmaOf(unit(), 0.9)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    average(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert all(p.grad is None for p in [*average.parameters(), *average.source.parameters()])


def test_copies_are_independent_or_equal():
    source: Any = unit()
    torch.nn.init.constant_(source.bn1.weight, 3.0)
    drawn: Any = copy_of(source)
    other: Any = copy_of(source)
    assert not torch.equal(drawn.conv1.weight, source.conv1.weight)
    assert not torch.equal(drawn.conv1.weight, other.conv1.weight)
    assert torch.equal(drawn.bn1.weight, torch.ones(4))
    # N(0, 2 / (k^2 c_out))
    wide: Any = copy_of(nn.Conv2d(64, 32, 3)).weight
    assert wide.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
    equal: Any = copy_of(source, "copy")
    assert torch.equal(equal.conv1.weight, source.conv1.weight)
    assert equal.conv1.weight is not source.conv1.weight


def test_the_source_is_no_part_of_it():
    average = EmaOf(unit(), 0.9)
    assert all(name.startswith("module.") for name in average.state_dict())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmaOf(unit(), 1.5), "momentum lies in"),
        (lambda: copy_of(unit(), "same"), "independent or copy"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UserError, match=message):
        build()
