"""The adjoint against torchdiffeq's, and repeated steps against PyTorch's own checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timing import faster
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from repro.methods.adjoint_dpm import RhoFlow, sample, time_grid
from repro.toolbox.costs import PeakMemory
from repro.toolbox.diffusion import ScaledLinear

PROCESS = ScaledLinear()
FLOW = RhoFlow(PROCESS)


class Net(nn.Module):
    """65-256-256-64, for images of 64 pixels and a time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (65, 256, 256, 64)
        self.layers = nn.Sequential(
            nn.Linear(*widths[:2]), nn.SiLU(), nn.Linear(*widths[1:3]), nn.SiLU(),
            nn.Linear(*widths[2:]),
        )  # fmt: skip

    def forward(self, x: Tensor, time_B: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, time_B[:, None]], dim=1))
        return out


def example(batch: int, steps: int) -> tuple[Net, Tensor, list[float]]:
    x_T = torch.randn(batch, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    return Net(), x_T, time_grid(PROCESS, steps)


def run(net: Net, x_T: Tensor, times: list[float], gradient: Any = "adjoint") -> list[Tensor]:
    """The gradients of noise and weights."""
    wanted = list(net.parameters())
    x_0 = sample(net, x_T, times, PROCESS, gradient=gradient, inputs=wanted)
    return list(torch.autograd.grad(x_0.square().sum(), [x_T, *wanted]))


def same(
    ours: Callable[[], list[Tensor]], theirs: Callable[[], list[Tensor]], bound: float
) -> None:
    for a, b in zip(ours(), theirs(), strict=True):
        assert float((a - b).norm() / b.norm()) < bound


@pytest.mark.parametrize(("batch", "factor"), [(64, 1.5), (300, 1.0)])
def test_against_torchdiffeq(batch: int, factor: float) -> None:
    """20 steps of Euler in ρ, gradients of noise and weights; the same numbers."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    net, x_T, times = example(batch, 20)
    field = FLOW.field(net)
    rho = torch.tensor([FLOW.coordinate(t) for t in times], dtype=torch.float64)

    def theirs() -> list[Tensor]:
        wanted = tuple(net.parameters())
        y = torchdiffeq.odeint_adjoint(
            lambda u, y: field(u.item(), y), x_T, rho, method="euler", adjoint_params=wanted
        )[-1]
        x_0 = y * FLOW.scale(times[-1])
        return list(torch.autograd.grad(x_0.square().sum(), [x_T, *wanted]))

    same(lambda: run(net, x_T, times), theirs, 1e-4)  # single precision
    faster(
        f"adjoint, batch {batch}, against torchdiffeq", lambda: run(net, x_T, times), theirs, factor
    )


def test_against_checkpoints_of_pytorch() -> None:
    """Repeated steps, batch 64: the same gradient."""
    net, x_T, times = example(64, 20)

    def theirs() -> list[Tensor]:
        def saving(x: Tensor, time_B: Tensor) -> Any:
            return checkpoint(net, x, time_B, use_reentrant=False)

        x_0 = sample(saving, x_T, times, PROCESS, gradient="naive")
        return list(torch.autograd.grad(x_0.square().sum(), [x_T, *net.parameters()]))

    def ours() -> list[Tensor]:
        return run(net, x_T, times, "checkpoint")

    same(ours, theirs, 1e-5)
    faster("repeated steps, against torch.utils.checkpoint", ours, theirs, 1.2)


def test_bytes_do_not_grow_with_steps_but_for_states() -> None:
    """Peak over both ways, batch 64, 5 to 80 steps."""
    slopes = {}
    for way in ("naive", "checkpoint", "adjoint"):
        peaks = []
        for steps in (5, 80):
            net, x_T, times = example(64, steps)
            with PeakMemory(torch.device("cpu")) as memory:
                run(net, x_T, times, way)
            peaks.append(memory.peak)
        slopes[way] = (peaks[1] - peaks[0]) / 75
    print(f"\nbytes a step: {slopes}")
    state = 64 * 64 * 4
    assert slopes["adjoint"] == pytest.approx(state, rel=0.1)
    assert slopes["adjoint"] - state < 0.1 * slopes["naive"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["naive", "checkpoint", "adjoint"])
def test_peak_memory_of_a_unet_of_50_million_weights(way: Any) -> None:
    """50 steps of a UNet at 64 × 64 pixels, batch 4; naive keeps them all."""
    from repro.models.diffusion.ddpm_unet import DDPMUNet

    device = torch.device("cuda")
    net = DDPMUNet((3, 64, 64), width=152, groups=8, dropout=0.0).eval().to(device)
    net.requires_grad_(False)
    peaks = []
    for steps in (10, 50):
        x_T = torch.randn(4, 3, 64, 64, device=device, requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        sample(net, x_T, time_grid(PROCESS, steps), PROCESS, gradient=way).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    print(f"\n{way}: {peaks[0]:.0f} MiB at 10 steps, {peaks[1]:.0f} at 50")
    if way != "naive":
        assert peaks[1] < 1.1 * peaks[0]
