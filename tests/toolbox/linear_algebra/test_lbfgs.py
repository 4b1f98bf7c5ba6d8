"""The batched minimiser against SciPy's, row by row, and on functions with a known minimum."""

import numpy as np
import torch
from scipy.optimize import minimize, rosen, rosen_der

from repro.methods.gbnn import fit_blocks, minimise, random_starts

D64 = torch.float64


def rosenbrock(x_BP):
    points = x_BP.numpy()
    values = np.array([rosen(x) for x in points])
    return torch.from_numpy(values), torch.from_numpy(np.stack([rosen_der(x) for x in points]))


def test_rows_reach_the_minimum_of_rosenbrock():
    start = torch.randn(5, 6, dtype=D64, generator=torch.Generator().manual_seed(1))
    x, f = minimise(rosenbrock, start, 300, tolerance=1e-15)
    assert (f < 1e-9).all() or (f < 4.0).all()  # 6 variables have one more local minimum, 3.97
    assert (f < 1e-9).sum() >= 3
    torch.testing.assert_close(rosenbrock(x)[0], f)


def test_a_quadratic_is_solved_exactly_and_rows_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 8, 8, dtype=D64, generator=generator)
    A = root @ root.mT + torch.eye(8, dtype=D64)
    b = torch.randn(4, 8, dtype=D64, generator=generator)

    def quadratic(rows):
        def objective(x):
            Ax = (A[rows] @ x[:, :, None])[:, :, 0]
            return (0.5 * x * Ax - b[rows] * x).sum(1), Ax - b[rows]

        return objective

    x, _ = minimise(quadratic(slice(None)), torch.zeros(4, 8, dtype=D64), 100, tolerance=0)
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-6)
    alone, _ = minimise(quadratic(slice(2, 3)), torch.zeros(1, 8, dtype=D64), 100, tolerance=0)
    torch.testing.assert_close(x[2:3], alone, rtol=1e-8, atol=1e-8)


def test_the_value_never_rises_and_hopeless_rows_stay():
    def objective(x):
        value = x.square().sum(1)
        value[1] = torch.nan
        return value, 2 * x

    start = torch.ones(2, 3, dtype=D64)
    x, f = minimise(objective, start, 50)
    assert f[0] < 1e-12
    torch.testing.assert_close(x[1], start[1])


def test_blocks_fit_as_well_as_scipy_on_the_same_objective():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 120, 5, dtype=D64, generator=generator)
    target = torch.sin(x.sum(2, keepdim=True)) + 0.1 * x[..., :1]
    start = random_starts(6, 5, 2, 1, generator)
    blocks, value = fit_blocks(x, target, start, J=2, alpha=0.1, iterations=300)

    def loss(p):  # written anew, with autograd, one problem at a time
        p = torch.from_numpy(p).requires_grad_()
        V, c, w, b = p[:10].view(5, 2), p[10:12], p[12:14], p[14]
        h = torch.sigmoid(x[0] @ V + c) @ w + b
        value = 0.5 * (h - target[0, :, 0]).square().mean()
        value = value + 0.1 / 240 * (V.square().sum() + w.square().sum())
        value.backward()
        return value.item(), p.grad.numpy()

    for row in range(6):
        mine = torch.cat([part[row].flatten() for part in blocks]).numpy()
        assert abs(loss(mine)[0] - value[row]) < 1e-12
        theirs = minimize(loss, start[row].numpy(), jac=True, method="L-BFGS-B").fun
        assert value[row] < theirs * 1.25 + 1e-4  # local minima differ, levels do not
    assert value.min() <= theirs * 1.05
