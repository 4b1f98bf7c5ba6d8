"""Curvature products against explicit matrices from `torch.func`, and against curvlinops."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F

from repro.toolbox.ensembles import Layout
from repro.toolbox.linear_algebra.curvature import Curvature, Kind, at_rest
from repro.toolbox.linear_algebra.lanczos import lanczos


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3


def explicit(net: nn.Module, batch: tuple[Tensor, Tensor], kind: Kind) -> Tensor:
    """The whole matrix, by automatic differentiation of the function of one vector."""
    layout = Layout.of(net)
    x, y = batch
    theta = layout.vector(net)

    def z(theta: Tensor) -> Tensor:
        return functional_call(net, layout.split(theta), (x,))

    if kind == "hessian":
        return hessian(lambda theta: F.cross_entropy(z(theta), y))(theta)
    J = jacrev(z)(theta).flatten(0, 1)
    p = z(theta).softmax(1).detach()
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return J.mT @ torch.block_diag(*blocks) @ J / len(x)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("keep", [True, False])
def test_products_are_those_of_the_matrix(
    kind: Kind, keep: bool, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    reference = explicit(net, batch, kind)
    parts = list(zip(*(each.split([5, 4, 3]) for each in batch), strict=True))
    for examples in ([batch], parts):
        curvature = Curvature(net, examples, kind, keep=keep)
        assert torch.allclose(curvature.matrix(), reference, atol=1e-10)
        assert curvature.products == curvature.size == 17


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ),
}


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("network", NETWORKS)
def test_products_and_top_eigenvalues_are_those_of_curvlinops(kind: Kind, network: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    net = NETWORKS[network]().double()
    x, y = torch.randn(24, 1, 6, 6, dtype=torch.float64), torch.arange(24) % 3
    batches = list(zip(x.split(10), y.split(10), strict=True))  # 10, 10 and 4
    ours = Curvature(net, batches, kind)
    make = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}[kind]
    theirs = make(net, nn.CrossEntropyLoss(), list(net.parameters()), batches)
    v = torch.randn(ours.size, dtype=torch.float64)
    torch.testing.assert_close(ours(v), theirs @ v)
    top = eigsh(theirs.to_scipy(), 1, which="LA", return_eigenvectors=False)[0]
    assert float(lanczos(ours, v, ours.size, 1e-6).top) == pytest.approx(top, rel=1e-6)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_batches_side_by_side_are_each_their_own(
    kind: Kind, net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    full = Curvature(net, [batch], kind)
    stacked = Curvature(
        net, [(x.view(4, 3, 3), y.view(4, 3))], kind, theta=full.theta.expand(4, -1)
    )
    v = torch.randn(4, full.size, dtype=torch.float64)
    one_by_one = [
        Curvature(net, [part], kind)(row)
        for part, row in zip(zip(x.split(3), y.split(3), strict=True), v, strict=True)
    ]
    assert torch.allclose(stacked(v), torch.stack(one_by_one), atol=1e-12)
    # A partition of the data: the batches' mean is the full product.
    assert torch.allclose(stacked(v[:1].expand(4, -1)).mean(0), full(v[0]), atol=1e-12)


def test_both_are_symmetric_agree_for_a_linear_model_and_only_one_is_positive(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    linear = nn.Linear(3, 3).double()
    kinds: tuple[Kind, Kind] = ("hessian", "ggn")
    one, other = (Curvature(linear, [batch], kind).matrix() for kind in kinds)
    assert torch.allclose(one, other, atol=1e-12)
    H, G = (Curvature(net, [batch], kind).matrix() for kind in kinds)
    assert torch.allclose(H, H.mT)
    assert torch.linalg.eigvalsh(G)[0] > -1e-12
    assert torch.linalg.eigvalsh(H)[0] < -1e-3


def test_batch_norm_sees_its_batch_dropout_sleeps_and_nothing_changes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    net.eval()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    x, y = torch.randn(16, 3) + 5, torch.arange(16) % 3
    in_eval = Curvature(net, [(x, y)])(v := torch.randn(39))
    with at_rest(net):
        assert net[1].training
        assert not net[2].training
        first, again = (Curvature(net, [(x, y)])(v) for _ in range(2))
        theta = Curvature(net, [(x, y)]).theta[None]
        row = Curvature(net, [(x[None], y[None])], theta=theta)(v[None])[0]
    assert torch.allclose(row, first)
    assert torch.equal(first, again)
    assert not torch.allclose(first, in_eval)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert not net[1].training
