"""The hot paths of post-training quantisation against what they replace."""

from __future__ import annotations

import copy
from functools import partial

import torch
from timing import faster
from torch.func import functional_call

from repro.methods.gradient_ptq import PostTrainingQuantization, Recipe, hessian_rounding
from repro.models import ResNetCIFAR
from repro.toolbox.reconstruction import fit_grid
from repro.toolbox.reconstruction.losses import l2
from repro.toolbox.reconstruction.variables import Free


def test_cached_inputs_against_running_the_prefix_at_every_update() -> None:
    """Against the plain loop: both networks run up to the last layer of a ResNet-20 each time."""
    model = ResNetCIFAR([3, 16, 16], 10, depth=20, width=8).eval()
    x, name, updates = torch.randn(256, 3, 16, 16), "layer3.2.conv2", 50
    recipe = Recipe(bits=3, variable="free", iterations=updates)
    ptq = PostTrainingQuantization(copy.deepcopy(model), recipe, x)
    (number,) = (i for i, unit in enumerate(ptq.units) if unit.name == name)

    def naive() -> None:
        student, teacher = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model)
        variable = Free(model.get_parameter(f"{name}.weight"), ptq.grid(name))
        optimizer = torch.optim.Adam(variable.parameters(), recipe.lr)
        outputs: dict[str, torch.Tensor] = {}
        for key, network in (("o", student), ("t", teacher)):
            network.get_submodule(name).register_forward_hook(
                lambda _, args, out, key=key: outputs.__setitem__(key, out)
            )
        for _ in range(updates):
            part = x[torch.randint(256, (32,))]
            with torch.no_grad():
                teacher(part)
            functional_call(student, {f"{name}.weight": variable.soft()}, (part,))
            optimizer.zero_grad()
            l2(outputs["o"], outputs["t"]).backward()
            optimizer.step()

    faster(
        f"{updates} updates of a layer, captures included", partial(ptq.step, number), naive, 2, 3
    )


def test_updates_in_blocks_against_updates_of_the_whole_matrix() -> None:
    weight, x = torch.randn(1024, 1024), torch.randn(2048, 1024)
    work = partial(hessian_rounding, weight, x.T @ x, fit_grid(weight, 4, search="minmax"))
    faster("Hessian rounding of 1024 x 1024 in blocks", work, partial(work, block=1024), 1, 2)
