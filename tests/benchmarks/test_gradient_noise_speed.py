"""What stacking restarts and drawing all noise at once is worth."""

from __future__ import annotations

from functools import partial

import torch
from timing import faster
from torch import nn
from torch.nn import functional as F

from repro.methods.gradient_noise import add_noise_
from repro.models.language.memory_network import MemoryNetwork
from repro.models.parts.restarts import Restarts
from repro.models.toys.stacked_mlp import StackedMLP

MEMBERS = 8


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Forward and backward pass of networks that are one module."""
    model.zero_grad()
    (F.cross_entropy(model(x).flatten(0, 1), y.repeat(MEMBERS)) * MEMBERS).backward()


def loop(networks: list[nn.Module], x: torch.Tensor, y: torch.Tensor) -> None:
    """The same of one network after the other."""
    for network in networks:
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()


def twenty_layers() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 50), nn.ReLU()]
    for _ in range(19):
        layers += [nn.Linear(50, 50), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(50, 10))


def test_stacked_mlps() -> None:
    """8 networks of 20 x 50 units."""
    batch = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    stacked = partial(step, StackedMLP((1, 8, 8), 10, MEMBERS, init="he"), *batch)
    alone = partial(loop, [twenty_layers() for _ in range(MEMBERS)], *batch)
    faster("8 MLPs, against a loop", stacked, alone, 1 / 0.6, 30)
    faster("8 MLPs, against vmap", stacked, partial(step, Restarts(MEMBERS, twenty_layers), *batch), 1, 30)  # fmt: skip  # noqa: E501


def test_mapped_memory_networks() -> None:
    batch = torch.randint(1, 24, (32, 11, 5)), torch.randint(24, (32,))
    build = partial(MemoryNetwork, [11, 5], 24)
    alone = partial(loop, [build() for _ in range(MEMBERS)], *batch)
    mapped = partial(step, Restarts(MEMBERS, build), *batch)
    faster("8 memory networks by vmap, against a loop", mapped, alone, 1, 30)


def test_one_draw_for_all_tensors() -> None:
    """Noise on the gradients of one 20 x 50 network against `randn_like` tensor by tensor."""
    tensors = [p.detach()[0].clone() for p in StackedMLP((64,), 10).parameters()]
    generators = {"cpu": torch.Generator().manual_seed(0)}
    faster(
        "noise in one draw, against a draw for each tensor",
        lambda: add_noise_(tensors, 0.1, generators),
        lambda: [tensor.add_(torch.randn_like(tensor) * 0.1) for tensor in tensors],
        1 / 1.1,
        200,
    )
