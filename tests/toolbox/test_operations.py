"""Counted operations against counts by hand."""

import torch
from torch import nn

from repro.toolbox.operations import count_operations


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
