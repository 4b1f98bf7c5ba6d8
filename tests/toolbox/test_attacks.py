"""Attacks against foolbox on the same model, closed forms and limits."""

from __future__ import annotations

import doctest
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.tables.bundled import transfer_digits
from repro.errors import UserError
from repro.models import SmallCNN
from repro.toolbox import attacks
from repro.toolbox.attacks import FGSM, PGD, DeepFool, in_chunks, margin

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 0.1


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network after a few passes over the digits, and 250 digits."""
    torch.manual_seed(0)
    splits = transfer_digits(task="classification").splits
    model = SmallCNN((1, 8, 8), 10, (8, 16, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = splits["train"]
    for _ in range(6):
        for batch, labels in zip(x.split(64), y.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    model.eval()
    x, y = (part[:160] for part in splits["val"])
    assert accuracy(model, x, y) > 0.9
    return model, x, y


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def fools(foolbox_attack: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    from foolbox import PyTorchModel

    wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")
    attacked = foolbox_attack(wrapped, x.clone(), y, epsilons=eps)[1]
    model.zero_grad()  # foolbox leaves gradients in the parameters
    return attacked


def test_the_docstring_holds() -> None:
    assert doctest.testmod(attacks).failed == 0


# -- foolbox --


def test_fgsm_is_foolbox(trained: Any) -> None:
    fb = pytest.importorskip("foolbox.attacks")
    model, x, y = trained
    theirs = fools(fb.LinfFastGradientAttack(), model, x, y, EPS)
    torch.testing.assert_close(FGSM(EPS)(model, x, y), theirs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_without_random_start_is_foolbox(trained: Any, norm: Any) -> None:
    fb = pytest.importorskip("foolbox.attacks")
    model, x, y = trained
    kind = {
        "linf": fb.LinfProjectedGradientDescentAttack,
        "l2": fb.L2ProjectedGradientDescentAttack,
    }
    eps = {"linf": EPS, "l2": 0.5}[norm]
    theirs = kind[norm](rel_stepsize=0.2, steps=10, random_start=False)
    ours = PGD(eps, steps=10, rel_step=0.2, random_start=False, norm=norm)
    torch.testing.assert_close(
        ours(model, x, y), fools(theirs, model, x, y, eps), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_as_strong_as_foolbox(trained: Any, norm: Any) -> None:
    fb = pytest.importorskip("foolbox.attacks")
    model, x, y = trained
    kind = {
        "linf": fb.LinfProjectedGradientDescentAttack,
        "l2": fb.L2ProjectedGradientDescentAttack,
    }
    eps = {"linf": EPS, "l2": 0.5}[norm]
    theirs = kind[norm](rel_stepsize=0.2, steps=20)
    ours = PGD(eps, steps=20, rel_step=0.2, norm=norm)
    torch.manual_seed(0)
    # One random start moves a robust accuracy by more than a point: compare the means of ten.
    left = [accuracy(model, ours(model, x, y), y) for _ in range(10)]
    right = [accuracy(model, fools(theirs, model, x, y, eps), y) for _ in range(10)]
    assert mean(left) == pytest.approx(mean(right), abs=0.01)


@pytest.mark.parametrize("candidates", [4, 10])
def test_deepfool_is_foolbox(trained: Any, candidates: int) -> None:
    fb = pytest.importorskip("foolbox.attacks")
    model, x, y = trained
    theirs = fools(fb.LinfDeepFoolAttack(candidates=candidates), model, x, y, EPS)
    ours = DeepFool(EPS, candidates=candidates)(model, x, y)
    assert accuracy(model, ours, y) == pytest.approx(accuracy(model, theirs, y), abs=0.01)
    same = (ours - theirs).flatten(1).abs().amax(1) < 1e-3
    assert same.float().mean() > 0.95  # a step that ends on the boundary may go either way


# -- Closed forms and limits --


def test_one_step_of_eps_is_fgsm(trained: Any) -> None:
    model, x, y = trained
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
    by_hand = (x + EPS * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(FGSM(EPS)(model, x, y), by_hand)
    torch.testing.assert_close(PGD(EPS, 1, 1.0, random_start=False)(model, x, y), by_hand)


def test_no_radius_no_change(trained: Any) -> None:
    model, x, y = trained
    for attack in (FGSM(0), PGD(0, 3), PGD(0, 3, norm="l2"), DeepFool(0)):
        assert torch.equal(attack(model, x, y), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_has_a_known_worst_case(norm: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 2).double()
    x = torch.rand(20, 12, dtype=torch.float64)
    y = torch.randint(2, (20,))
    attacked = PGD(0.3, steps=50, rel_step=0.2, norm=norm, bounds=None)(model, x, y)
    w = (model.weight[1] - model.weight[0]).detach()
    reach = 0.3 * (w.abs().sum() if norm == "linf" else w.norm())
    gain = margin(model(attacked), y) - margin(model(x), y)
    torch.testing.assert_close(gain.detach(), reach.expand(20), rtol=1e-6, atol=0)


def test_deepfool_finds_the_distance_to_a_plane() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 2).double()
    x = torch.rand(20, 12, dtype=torch.float64)
    y = model(x).argmax(1)
    w = model.weight[1] - model.weight[0]
    distance = (margin(model(x), y).abs() / w.abs().sum()).detach()
    attacked = DeepFool(torch.inf, bounds=None)(model, x, y)
    assert bool((model(attacked).argmax(1) != y).all())
    moved = (attacked - x).abs().amax(1)
    torch.testing.assert_close(moved, 1.02 * (distance + 1e-4))


@pytest.mark.parametrize(
    "attack",
    [PGD(EPS, 5, 0.3), PGD(EPS, 5, 0.3, loss="margin"), DeepFool(EPS, 5), FGSM(EPS)],
    ids=["pgd", "margin", "deepfool", "fgsm"],
)
def test_results_stay_in_ball_and_bounds(trained: Any, attack: Any) -> None:
    model, x, y = trained
    attacked = attack(model, x, y)
    assert (attacked - x).abs().max() <= EPS + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert accuracy(model, attacked, y) < accuracy(model, x, y)
    assert all(p.grad is None for p in model.parameters())


def test_the_l2_ball_holds(trained: Any) -> None:
    model, x, y = trained
    for steps in (1, 5):
        moved = PGD(0.5, steps, 0.5, norm="l2")(model, x, y) - x
        assert moved.flatten(1).norm(dim=1).max() <= 0.5 + 1e-5


def test_random_starts_fill_the_ball() -> None:
    torch.manual_seed(0)
    radii = attacks.NORMS["l2"].random(torch.zeros(20000, 3)).norm(dim=1)
    for radius in (0.5, 0.8):
        assert (radii < radius).float().mean() == pytest.approx(radius**3, abs=0.01)


def test_attacks_work_where_gradients_are_off(trained: Any) -> None:
    model, x, y = trained
    for attack in (PGD(EPS, 3, 0.4, random_start=False), DeepFool(EPS, 3)):
        wanted = attack(model, x, y)
        with torch.inference_mode():
            inside = x.clone()  # an inference tensor, as Lightning's test batches are
            assert torch.equal(attack(model, inside, y.clone()), wanted)
        with torch.no_grad():
            assert torch.equal(attack(model, x, y), wanted)


def test_chunks_change_nothing(trained: Any) -> None:
    model, x, y = trained
    attack = PGD(EPS, 3, 0.4, random_start=False)
    torch.testing.assert_close(in_chunks(attack, model, x, y, 64), attack(model, x, y))


def test_margin() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 0.0]])
    assert margin(logits, torch.tensor([1, 1])).tolist() == [-1.0, 4.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(-1.0), "eps is at least 0"),
        (lambda: PGD(float("nan")), "eps is at least 0"),
        (lambda: PGD(0.1, 0), "steps"),
        (lambda: PGD(0.1, rel_step=0), "rel_step"),
        (lambda: PGD(0.1, norm="linff"), "Did you mean 'linf'"),  # type: ignore[arg-type]
        (lambda: PGD(0.1, loss="hinge"), "loss is cross_entropy or margin, not 'hinge'"),
        (lambda: PGD(0.1, bounds=(1, 0)), "bounds"),
        (lambda: DeepFool(0.1, candidates=1), "candidates"),
    ],
)
def test_bad_knobs(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
