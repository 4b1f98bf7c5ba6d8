"""What stacking restarts and drawing all noise at once is worth."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.methods.gradient_noise import add_noise_
from repro.models.language.memory_network import MemoryNetwork
from repro.models.parts.restarts import Restarts
from repro.models.toys.stacked_mlp import StackedMLP

pytestmark = pytest.mark.usefixtures("one_thread")
MEMBERS = 8


def milliseconds(run: Callable[[], object], repeats: int = 30) -> float:
    """The fastest of some repeats, after a warm-up."""
    times = []
    for repeat in range(repeats + 3):
        start = time.perf_counter()
        run()
        if repeat >= 3:
            times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, stacked: bool) -> None:
    model.zero_grad()
    output = model(x)
    if stacked:
        (F.cross_entropy(output.flatten(0, 1), y.repeat(MEMBERS)) * MEMBERS).backward()
    else:
        F.cross_entropy(output, y).backward()


@pytest.mark.benchmark
def test_stacked_mlps_beat_a_loop_and_vmap(capsys: pytest.CaptureFixture[str]) -> None:
    """Forward and backward pass of 8 networks of 20 x 50 units."""
    x, y = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    stacked = StackedMLP((1, 8, 8), 10, MEMBERS, init="he")
    mapped = Restarts(MEMBERS, twenty_layers)
    networks = [twenty_layers() for _ in range(MEMBERS)]
    ours = milliseconds(lambda: step(stacked, x, y, True))
    vmap = milliseconds(lambda: step(mapped, x, y, True))
    loop = milliseconds(lambda: [step(network, x, y, False) for network in networks])
    with capsys.disabled():
        print(f"\n8 MLPs: stacked {ours:.2f} ms, vmap {vmap:.2f} ms, loop {loop:.2f} ms")
    assert ours < 0.6 * loop
    assert ours < vmap


def twenty_layers() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 50), nn.ReLU()]
    for _ in range(19):
        layers += [nn.Linear(50, 50), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(50, 10))


@pytest.mark.benchmark
def test_mapped_memory_networks_beat_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """Forward and backward pass of 8 memory networks through vmap against one after the other."""
    x, y = torch.randint(1, 24, (32, 11, 5)), torch.randint(24, (32,))
    build = partial(MemoryNetwork, [11, 5], 24)
    mapped, networks = Restarts(MEMBERS, build), [build() for _ in range(MEMBERS)]
    ours = milliseconds(lambda: step(mapped, x, y, True))
    loop = milliseconds(lambda: [step(network, x, y, False) for network in networks])
    with capsys.disabled():
        print(f"\n8 memory networks: vmap {ours:.2f} ms, loop {loop:.2f} ms")
    assert ours < loop


@pytest.mark.benchmark
def test_one_draw_is_no_slower_than_a_draw_per_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    """Noise on the gradients of one 20 x 50 network against `randn_like` tensor by tensor."""
    tensors = [p.detach()[0].clone() for p in StackedMLP((64,), 10).parameters()]
    generators = {"cpu": torch.Generator().manual_seed(0)}

    def naive() -> None:
        for tensor in tensors:
            tensor.add_(torch.randn_like(tensor) * 0.1)

    ours = milliseconds(lambda: add_noise_(tensors, 0.1, generators), 200)
    theirs = milliseconds(naive, 200)
    with capsys.disabled():
        print(f"\nnoise: one draw {ours:.3f} ms, per tensor {theirs:.3f} ms")
    assert ours < 1.1 * theirs
