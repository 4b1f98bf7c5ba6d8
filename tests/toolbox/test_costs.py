"""The memory meter against known sizes and PyTorch's profiler; operations counted by hand."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from repro.toolbox.costs import (
    CountFlops,
    PeakMemory,
    SavedForBackward,
    count_operations,
    multiply_accumulates,
    peak_flops,
)

CPU = torch.device("cpu")
MB = 2**20


def floats(megabytes):
    return torch.zeros(megabytes * MB // 4)


def test_counts_what_lives_at_one_time():
    with PeakMemory(CPU) as memory:
        a = floats(2)
        b = a + 1
        del a
        c = b * 2  # b and c: again 4 MB, not 6
        del b, c
    assert memory.peak == 4 * MB


def test_views_and_in_place_results_are_no_new_memory():
    with PeakMemory(CPU) as memory:
        a = floats(2)
        views = [a[:10], a.view(2, -1), a.add_(1), a.detach()]
        del a
        b = floats(1)
        del views, b
    assert memory.peak == 3 * MB


def test_what_was_there_before_counts_once():
    weights = floats(1)
    with PeakMemory(CPU, [weights, weights.view(2, -1)]) as memory:
        floats(2)
    assert memory.peak == 3 * MB


def test_gradients_and_graphs_count_while_they_live():
    x = floats(1).requires_grad_()
    with PeakMemory(CPU) as memory:
        (x.exp().sum()).backward()  # keeps exp(x), then makes the gradient
    assert 2 * MB <= memory.peak <= 3 * MB + 1024


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_the_allocator_as_the_profiler_sees_it():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(6)])
    x = torch.randn(512, 256)

    def step():
        model(x).square().mean().backward()
        model.zero_grad()

    step()
    with PeakMemory(CPU) as memory:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    total = highest = 0
    for _, change in changes:
        total += change
        highest = max(highest, total)
    assert memory.peak == pytest.approx(highest, rel=0.05)


if torch.cuda.is_available():

    def test_on_a_gpu_it_is_the_allocators_own_count():
        device = torch.device("cuda")
        with PeakMemory(device) as memory:
            torch.zeros(MB, device=device)
        assert memory.peak >= 4 * MB


def test_products_of_matrices_real_and_complex():
    real, other = torch.ones(3, 4, 5), torch.ones(3, 5, 6)
    assert count_operations(torch.matmul, real, other).multiplications == 3 * 4 * 5 * 6
    z = real.to(torch.complex64)
    assert count_operations(torch.matmul, z, z.mH).multiplications == 4 * 3 * 4 * 5 * 4


def test_a_perceptron_and_elementwise_products():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    by_hand = 10 * (4 * 8 + 8 * 2)
    assert count_operations(net, torch.ones(10, 4)).multiplications == by_hand
    assert count_operations(net, torch.ones(2, 5, 4)).multiplications == by_hand
    with torch.inference_mode():
        assert count_operations(net, torch.ones(2, 5, 4)).multiplications == by_hand
    assert count_operations(lambda x: x * x / 2 + x, torch.ones(7)).multiplications == 14


def test_factorisations_are_counted_and_named():
    A = torch.eye(6).expand(2, 6, 6).clone()
    solved = count_operations(torch.linalg.solve, A, torch.ones(2, 6, 3))
    assert list(solved.solves.values()) == [1]
    assert solved.multiplications == 2 * (6**3 // 3 + 6 * 6 * 3)
    assert count_operations(torch.linalg.inv, A).multiplications == 2 * 6**3
    for decompose in (torch.linalg.cholesky, torch.linalg.svd, torch.linalg.qr, torch.linalg.eigh):
        assert sum(count_operations(decompose, A).solves.values()) == 1
    assert count_operations(torch.add, A, A).solves == {}


def test_saved_activations_are_counted_once_and_until_their_graph_is_freed():
    """tanh saves its output, which the next layer saves again as its input."""
    layers = [nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)]
    model, x = nn.Sequential(*layers), torch.randn(32, 64)
    with SavedForBackward([*model.parameters(), x]) as saved:
        loss = model(x).sum()
        assert saved.live == saved.peak == 2 * 32 * 256 * 4
        loss.backward()
        assert saved.live == 0
        model(x)  # nobody keeps the output
    assert (saved.live, saved.peak) == (0, 2 * 32 * 256 * 4)


def test_metering_saved_tensors_changes_no_gradient():
    weight = torch.randn(5, 5, requires_grad=True)
    gradients: list[Any] = []
    for metered in (False, True):
        weight.grad = None
        with SavedForBackward() if metered else torch.enable_grad():
            (weight.tanh() @ weight).square().sum().backward()
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


def test_parameters_and_what_is_without_gradient_are_not_counted():
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    with SavedForBackward(model.parameters()) as saved:
        model(x)
        assert saved.peak == x.nbytes
        with torch.no_grad():
            model(torch.randn(400, 8))
    assert saved.peak == x.nbytes


def test_multiply_accumulates_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)
    )
    convolution, linear = 16 * 6 * 9, 96 * 5
    assert multiply_accumulates(model, torch.zeros(3, 2, 6, 6)) == 3 * (convolution + linear)


class TestCountFlops:
    def test_products_and_convolutions_forward_and_back(self) -> None:
        layer, conv = torch.nn.Linear(5, 7), torch.nn.Conv2d(3, 4, 3)
        with CountFlops() as counted:
            layer(torch.randn(11, 5)).sum().backward()  # the input needs no gradient
        assert counted.flops == 2 * (2 * 11 * 5 * 7)
        with CountFlops() as counted:
            conv(torch.randn(2, 3, 8, 8))
        assert counted.flops == 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)

    def test_attention_is_two_products_and_five_more_for_its_gradient(self) -> None:
        q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
        with CountFlops() as counted:
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True
            ).sum().backward()
        assert counted.flops == (2 + 5) * (2 * 2 * 3 * 16 * 16 * 8)


def test_peaks_are_found_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 19.5e12
    assert peak_flops("x86_64", "bf16") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None
