"""The hot paths of post-training quantisation against what they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from timing import fastest
from torch.func import functional_call

from repro.methods.gradient_ptq import (
    PostTrainingQuantization,
    Recipe,
    fit_grid,
    hessian_rounding,
)
from repro.methods.gradient_ptq.losses import l2
from repro.methods.gradient_ptq.variables import Free
from repro.models import ResNetCIFAR

pytestmark = pytest.mark.benchmark


def test_cached_inputs_beat_running_the_prefix_at_every_update() -> None:
    """Against the plain loop: both networks run up to the last layer of a ResNet-20 each time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ResNetCIFAR([3, 16, 16], 10, depth=20, width=8).eval()
    x, name, updates = torch.randn(256, 3, 16, 16), "layer3.2.conv2", 50
    recipe = Recipe(bits=3, variable="free", iterations=updates)
    ptq = PostTrainingQuantization(copy.deepcopy(model), recipe, x)
    (number,) = (i for i, unit in enumerate(ptq.units) if unit.name == name)

    def naive() -> None:
        student = copy.deepcopy(model).requires_grad_(False)
        layer = model.get_submodule(name)
        variable = Free(layer.weight, ptq.grid(name))
        optimizer, outputs = torch.optim.Adam(variable.parameters(), recipe.lr), {}
        for key, network in (("o", student), ("t", model)):
            network.get_submodule(name).register_forward_hook(
                lambda _, args, out, key=key: outputs.__setitem__(key, out)
            )
        for _ in range(updates):
            part = x[torch.randint(256, (32,))]
            with torch.no_grad():
                model(part)
            functional_call(student, {f"{name}.weight": variable.soft()}, (part,))
            optimizer.zero_grad()
            l2(outputs["o"], outputs["t"]).backward()
            optimizer.step()

    ours, theirs = fastest(lambda: ptq.step(number), 3), fastest(naive, 3)
    print(
        f"\n{updates} updates of one layer of a ResNet-20: {1e3 * ours:.0f} ms, captures included; "
        f"running both networks each time takes {theirs / ours:.1f} times as long"
    )
    assert ours < theirs / 2


def test_updates_in_blocks_beat_updates_of_the_whole_matrix() -> None:
    """Hessian rounding of a 1024 x 1024 layer, with block 128 and without blocks."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, 1024, generator=generator)
    x = torch.randn(2048, 1024, generator=generator)
    hessian, grid = x.T @ x, fit_grid(weight, 4, search="minmax")
    blocked = fastest(lambda: hessian_rounding(weight, hessian, grid), 2)
    whole = fastest(lambda: hessian_rounding(weight, hessian, grid, block=1024), 2)
    print(f"\nin blocks {blocked:.2f} s, without {whole / blocked:.1f} times as long")
    assert blocked < whole


def test_one_search_for_all_channels_beats_one_for_each() -> None:
    """The range search of 512 channels, against a loop over channels."""
    torch.set_num_threads(1)
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    ours = fastest(lambda: fit_grid(weight, 4), 3)
    loop = fastest(lambda: [fit_grid(row[None], 4) for row in weight], 1)
    print(f"\nat once {1e3 * ours:.0f} ms, channel by channel {loop / ours:.0f} times as long")
    assert ours < loop / 5
