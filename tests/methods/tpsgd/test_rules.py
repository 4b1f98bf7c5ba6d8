"""Each rule against its formula, with every other layer cut off; and where rules must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.tpsgd import (
    LOCAL_LOSSES,
    Backprop,
    DirectFeedback,
    FeedbackAlignment,
    Projections,
    TargetProjection,
)
from repro.models import MLP, Chain, ResNetCIFAR
from repro.models.toys.row_rnn import RowRNN
from repro.models.vision.vgg import VGG
from repro.toolbox.costs import SavedForBackward

CLASSES = 5
X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % CLASSES


def mlp(hidden: tuple[int, ...] = (8, 7, 9), activation: str = "tanh") -> MLP:
    torch.manual_seed(1)
    return MLP([6], CLASSES, hidden, activation)


def gradients(
    model: nn.Module, method: Backprop, x: Tensor = X, y: Tensor = Y, **sgd: float
) -> dict[str, Tensor]:
    """What one backward pass leaves in every parameter."""
    method.attach(model)
    method.optimizer(model, lambda groups: torch.optim.SGD(groups, **{"lr": 0.1, **sgd}))
    model.zero_grad()
    method.backward(None, (x, y), Tensor.backward)  # type: ignore[arg-type]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trained(model: nn.Module, method: Backprop, steps: int = 20, lr: float = 0.1) -> list[Tensor]:
    """The parameters after some steps of a plain loop."""
    method.attach(model)
    optimizer = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=lr))
    for step in range(steps):
        method.start_epoch(step)
        optimizer.zero_grad()
        method.backward(None, (X, Y), Tensor.backward)  # type: ignore[arg-type]
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


# -- Feed-forward layers against the paper's formulas ----------------------------------------------

BRACKETS = {
    "l2": lambda target, y: target - y,
    "l1": lambda target, y: (target - y).sign(),
    "drtp": lambda target, _: target,
}


@pytest.mark.parametrize("loss", BRACKETS)
def test_every_layer_follows_its_formula(loss: str) -> None:
    model, method = mlp(), TargetProjection(loss, kind="normal", seed=3)
    found = gradients(model, method)
    y = X
    for number, name in enumerate(("1", "3", "5"), start=1):
        layer: Any = model[int(name)]
        before, y = y, (y @ layer.weight.T + layer.bias).tanh().detach()
        target = method.projections.of(number, CLASSES, y)[Y]
        delta = -BRACKETS[loss](target, y) * (1 - y**2) / len(X)
        torch.testing.assert_close(found[f"{name}.weight"], delta.T @ before)
        torch.testing.assert_close(found[f"{name}.bias"], delta.sum(0))
    last: Any = model[-1]
    delta = ((y @ last.weight.T + last.bias).softmax(1) - F.one_hot(Y, CLASSES)) / len(X)
    torch.testing.assert_close(found["7.weight"], (delta.T @ y).detach())


@pytest.mark.parametrize("spread", ["full", "channel"])
@pytest.mark.parametrize("loss", LOCAL_LOSSES)
def test_a_convolution_follows_its_own_loss_before_pooling(loss: str, spread: Any) -> None:
    torch.manual_seed(0)
    model = VGG([1, 8, 8], CLASSES, [[3], [4]], kernel=5, hidden=[6], activation="tanh")
    method = TargetProjection(loss, spread=spread)
    x = torch.randn(12, 1, 8, 8)
    found = gradients(model, method, x)
    for number, unit in enumerate(model.units):
        x = x.detach()
        y = unit(x)
        table = method.projections.of(number + 1, CLASSES, y)
        pooled = spread == "channel" and number < 2
        assert table.shape[1:] == ((y.shape[1], 1, 1) if pooled else y.shape[1:])
        pixels = [64, 16, 1][number]
        local = LOCAL_LOSSES[loss](table[Y], y).mean() / pixels
        expected = torch.autograd.grad(local, list(unit.parameters()))
        names = [name for name in found if name.startswith(f"units.{number}.")]
        for name, gradient in zip(names, expected, strict=True):
            torch.testing.assert_close(found[name], gradient)
        x = y


@pytest.mark.parametrize("times", ["last", "all"])
def test_a_recurrent_layer_holds_its_past_constant(times: Any) -> None:
    """dW = -mean over steps of [(target - h_t) * sigma'] x_t^T, dU with h_{t-1} in its place."""
    torch.manual_seed(0)
    model = RowRNN([1, 4, 3], CLASSES, hidden=[7, 6])
    method = TargetProjection("l2", times=times)
    x = torch.randn(12, 1, 4, 3)
    found = gradients(model, method, x)
    given = x[:, 0]
    for number, layer in enumerate(model.layers, start=1):
        states = layer(given).detach()
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
        target = method.projections.of(number, CLASSES, states[:, 0])[Y][:, None]
        delta = -(target - states) * (1 - states**2) / len(x)
        steps = slice(None) if times == "all" else slice(-1, None)
        count = 4 if times == "all" else 1
        for part, constant in (("input", given), ("recurrent", before)):
            expected = torch.einsum("bti,btj->ij", delta[:, steps], constant[:, steps]) / count
            torch.testing.assert_close(found[f"layers.{number - 1}.{part}.weight"], expected)
        given = states


def test_one_time_step_is_a_perceptron() -> None:
    torch.manual_seed(0)
    recurrent, plain = RowRNN([1, 1, 6], CLASSES, hidden=[8]), mlp((8,))
    with torch.no_grad():
        recurrent.layers[0].recurrent.weight.zero_()  # type: ignore[union-attr]
        for own, other in ((recurrent.layers[0].input, plain[1]), (recurrent.head[1], plain[3])):
            own.weight.copy_(other.weight)
            own.bias.copy_(other.bias)
    images = X.view(12, 1, 1, 6)
    expected = gradients(plain, TargetProjection())
    for times in ("last", "all"):
        found = gradients(recurrent, TargetProjection(times=times), images)  # type: ignore[arg-type]
        torch.testing.assert_close(found["layers.0.input.weight"], expected["1.weight"])
        torch.testing.assert_close(found["head.1.weight"], expected["3.weight"])
        assert not found["layers.0.recurrent.weight"].any()


# -- Where rules agree -----------------------------------------------------------------------------


def drtp_by_hooks(model: MLP, tables: list[Tensor]) -> dict[str, Tensor]:
    """DRTP as its authors do it: hooks replace the gradient at the activations by B y*."""
    model.zero_grad()
    y = X
    for index, table in zip((1, 3, 5), tables, strict=True):
        y = model[index + 1](model[index](y))
        y.register_hook(lambda _, table=table: table[Y] / len(Y))
    F.cross_entropy(model[-1](y), Y).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_drtp_is_that_of_hooks_with_matrices_of_the_other_sign() -> None:
    model, method = mlp(), TargetProjection("drtp", kind="kaiming")
    found = gradients(model, method)
    tables = [-method.projections._tables[number] for number in (1, 2, 3)]
    for name, gradient in drtp_by_hooks(model, tables).items():
        torch.testing.assert_close(found[name], gradient)


def test_l1_and_drtp_are_one_rule_where_no_target_can_be_passed() -> None:
    """Bit for bit, over a whole run: tanh, targets of -1 and 1."""
    runs = [trained(mlp(), TargetProjection(loss), 200, lr=1.0) for loss in ("l1", "drtp")]
    assert same(*runs)
    others = [trained(mlp(), TargetProjection(loss, scale=0.5), 20) for loss in ("l1", "drtp")]
    assert not same(*others)


def test_without_hidden_layers_all_rules_are_logistic_regression() -> None:
    expected = trained(mlp(()), Backprop())
    for method in (TargetProjection(), DirectFeedback(), FeedbackAlignment()):
        assert same(trained(mlp(()), method), expected)


def test_feedback_through_the_own_weights_is_backpropagation() -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 1, 8, 8)
    models = [
        VGG([1, 8, 8], CLASSES, [[3], [4]], hidden=[6], activation="tanh"),
        RowRNN([1, 8, 8], CLASSES, hidden=[7, 6]),
    ]
    for model in models:
        expected, method = gradients(model, Backprop(), x), FeedbackAlignment()
        method.attach(model)
        other = gradients(model, method, x)
        assert any(not torch.allclose(other[name], expected[name]) for name in expected)
        method.attach = lambda _: None  # type: ignore[method-assign]
        method.feedback = {layer: layer.weight.detach() for layer in method.feedback}  # type: ignore[misc]
        for name, gradient in gradients(model, method, x).items():
            torch.testing.assert_close(gradient, expected[name])


def test_feedback_alignment_follows_its_formula() -> None:
    model, method = mlp((8, 7)), FeedbackAlignment()
    found = gradients(model, method)
    first, second, last = (part for part in model if isinstance(part, nn.Linear))
    a = first(X).tanh()
    b = second(a).tanh()
    error = (last(b).softmax(1) - F.one_hot(Y, CLASSES)) / len(X)
    delta = (error @ method.feedback[last]) * (1 - b**2)
    torch.testing.assert_close(found["3.weight"], (delta.T @ a).detach())
    delta = (delta @ method.feedback[second]) * (1 - a**2)
    torch.testing.assert_close(found["1.weight"], (delta.T @ X).detach())


@pytest.mark.parametrize("signed", [False, True])
def test_direct_feedback_follows_its_formula(signed: bool) -> None:
    model, method = mlp((8, 7)), DirectFeedback(signed)
    found = gradients(model, method)
    a = model[2](model[1](X))
    b = model[4](model[3](a))
    error = (model[5](b).softmax(1) - F.one_hot(Y, CLASSES)) / len(X)
    error = error.sign() / len(X) if signed else error
    for number, (y, before) in enumerate(((a, X), (b, a)), start=1):
        delta = (error @ method.projections.of(number, CLASSES, y)) * (1 - y**2)
        torch.testing.assert_close(found[f"{2 * number - 1}.weight"], (delta.T @ before).detach())


def test_direct_feedback_by_the_output_weights_is_backpropagation_of_one_layer() -> None:
    model, method = mlp((8,)), DirectFeedback()
    expected = gradients(model, Backprop())
    method.projections._tables[1] = model[-1].weight.detach()  # type: ignore[union-attr,assignment]
    for name, gradient in gradients(model, method).items():
        torch.testing.assert_close(gradient, expected[name])


def test_a_linear_layer_finds_the_least_squares_map_to_its_targets() -> None:
    class Linear(nn.Sequential):
        def chain(self) -> Chain:
            return Chain(nn.Identity(), [self[0]], [1], self[1])

    torch.manual_seed(0)
    model, method = Linear(nn.Linear(6, 4), nn.Linear(4, CLASSES)), TargetProjection(kind="normal")
    trained(model, method, steps=3000, lr=0.3)
    ones = torch.cat([X, torch.ones(12, 1)], dim=1)
    solution = torch.linalg.lstsq(ones, method.projections._tables[1][Y]).solution
    first: Any = model[0]
    torch.testing.assert_close(first.weight.T, solution[:6], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(first.bias, solution[6], atol=1e-4, rtol=1e-3)


# -- What must not happen --------------------------------------------------------------------------


def test_no_layer_hears_of_another() -> None:
    model = mlp()
    before = gradients(model, TargetProjection())
    with torch.no_grad():
        model[3].weight.mul_(2)  # type: ignore[union-attr,operator]
    after = gradients(model, TargetProjection())
    assert torch.equal(before["1.weight"], after["1.weight"])
    assert not torch.equal(before["3.weight"], after["3.weight"])


def test_targets_are_fixed_by_the_seed_and_nearly_orthogonal() -> None:
    output = torch.zeros(2, 4000)
    ours, again = Projections(seed=1), Projections(seed=1)
    table = ours.of(1, CLASSES, output).clone()
    assert torch.equal(again.of(1, CLASSES, output), table)
    assert not torch.equal(ours.of(2, CLASSES, output), table)
    assert not torch.equal(Projections(seed=2).of(1, CLASSES, output), table)
    inner = table @ table.T / 4000
    torch.testing.assert_close(inner, torch.eye(CLASSES), atol=5 / 4000**0.5, rtol=0)
    assert torch.equal(ours.of(1, CLASSES, output), table)


def test_laws_of_projections() -> None:
    def entries(**knobs: Any) -> Tensor:
        return Projections(**knobs).of(0, 50, torch.zeros(1, 300))

    assert entries(scale=0.3).abs().unique().tolist() == pytest.approx([0.3])
    assert entries(kind="normal").std().item() == pytest.approx(1, abs=0.02)
    bound = (6 / 300) ** 0.5
    assert 0.99 * bound < entries(kind="kaiming").abs().max().item() <= bound


@pytest.mark.parametrize("update", ["at_once", "recompute"])
def test_updating_at_once_changes_nothing_but_what_recomputing_shows(update: Any) -> None:
    together = trained(mlp(), TargetProjection())
    assert same(trained(mlp(), TargetProjection(update=update)), together) == (update == "at_once")


def test_a_greedy_schedule_trains_one_layer_after_the_other() -> None:
    model, method = mlp((8, 7)), TargetProjection(greedy_epochs=2)
    snapshots = []
    for epoch in (0, 2, 4, 5):
        method.start_epoch(epoch)
        snapshots.append(set(gradients(model, method)))
    layers = [{"1.weight", "1.bias"}, {"3.weight", "3.bias"}, {"5.weight", "5.bias"}]
    assert snapshots == [*layers, layers[-1]]


def test_chosen_layers_alone_are_trained() -> None:
    for rule in (Backprop, TargetProjection, DirectFeedback):
        method = rule(trained=[-1])
        assert set(gradients(mlp(), method)) == {"5.weight", "5.bias", "7.weight", "7.bias"}
    assert set(gradients(mlp(), TargetProjection(hidden_lr=0.0))) == {"7.weight", "7.bias"}


def test_class_means_of_the_untrained_network_as_targets() -> None:
    model, method = mlp((8,)), TargetProjection(targets="class_means")
    method.attach(model)
    with pytest.raises(UserError, match="fit_targets"):
        method.backward(None, (X, Y), Tensor.backward)  # type: ignore[arg-type]
    method.fit_targets(X, Y)
    features = model[2](model[1](X))
    torch.testing.assert_close(method.means[1][2], features[Y == 2].mean(0))
    local = method.loss_at(1, features, Y)
    expected = (features - method.means[1][Y]).square().sum(1).mean() / 2
    torch.testing.assert_close(local, expected)
    kept = TargetProjection(targets="class_means")
    kept.load_state_dict(method.state_dict())
    assert torch.equal(kept.means[1], method.means[1])


def test_shuffled_targets_are_those_of_other_classes_and_resume() -> None:
    one, other = TargetProjection(targets="shuffled"), TargetProjection(targets="shuffled")
    first = gradients(mlp(), one)
    assert not torch.equal(first["1.weight"], gradients(mlp(), TargetProjection())["1.weight"])
    other.load_state_dict(one.state_dict())
    second = [gradients(mlp(), method)["1.weight"] for method in (one, other)]
    assert torch.equal(*second)
    assert not torch.equal(second[0], first["1.weight"])


def test_rates_of_hidden_layers_and_of_the_output() -> None:
    model, method = mlp((8,)), Backprop(hidden_lr=0.5)
    method.attach(model)
    groups = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=0.1)).param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 0.1), (2, 0.5)]
    assert groups[0]["params"][0] is model[-1].weight


def test_binary_cross_entropy_is_the_mean_over_outputs() -> None:
    model = mlp((8,))
    found = gradients(model, Backprop(output_loss="bce"))
    features = model[2](model[1](X))
    delta = (model[3](features).sigmoid() - F.one_hot(Y, CLASSES)) / (len(X) * CLASSES)
    torch.testing.assert_close(found["3.weight"], (delta.T @ features).detach())


def saved(method: Backprop, depth: int) -> int:
    model = mlp((256,) * depth)
    method.attach(model)
    method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=0.1))
    with SavedForBackward(model.parameters()) as memory:
        method.backward(None, (X, Y), Tensor.backward)  # type: ignore[arg-type]
    return memory.peak


def test_what_is_kept_does_not_grow_with_depth() -> None:
    """Those that wait for the output keep a layer's outputs each, whatever comes back to them."""
    layer = len(X) * 256 * 4
    for rule in (TargetProjection("drtp"), TargetProjection(update="at_once")):
        assert saved(rule, 16) == saved(rule, 2)
    for waiting in (Backprop(), FeedbackAlignment(), DirectFeedback()):
        assert saved(waiting, 16) - saved(waiting, 2) == 14 * layer


def test_what_is_kept_does_not_grow_with_time() -> None:
    def kept(method: Backprop, rows: int) -> int:
        torch.manual_seed(0)
        model = RowRNN([1, rows, 3], CLASSES, hidden=[32])
        method.attach(model)
        with SavedForBackward(model.parameters()) as memory:
            batch = torch.randn(12, 1, rows, 3)
            method.backward(None, (batch, Y), Tensor.backward)  # type: ignore[arg-type]
        return memory.peak

    images = 12 * 16 * 3 * 4  # what a layer reads is a slice of the batch
    for times in ("last", "all"):
        method = TargetProjection(times=times)  # type: ignore[arg-type]
        assert kept(method, 32) - kept(method, 16) <= images + 12 * 16 * 32 * 4
    assert kept(Backprop(), 32) - kept(Backprop(), 16) > 12 * 16 * 32 * 4


def test_residual_blocks_are_layers_too() -> None:
    torch.manual_seed(0)
    model = ResNetCIFAR([3, 8, 8], CLASSES, depth=8, width=4)
    found = gradients(model, TargetProjection(), torch.randn(12, 3, 8, 8))
    assert set(found) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Backprop().attach(nn.Linear(2, 2)), "no chain"),
        (lambda: TargetProjection(trained=[3]).attach(mlp()), "hidden layers 0 to 2"),
        (lambda: gradients(mlp(), TargetProjection(), y=torch.randn(12, 1)), "one label per"),
        (lambda: TargetProjection("l3"), "loss is l2, l1, drtp, hinge or cosine"),
        (lambda: DirectFeedback(kind="gauss"), "kind is rademacher"),  # type: ignore[arg-type]
        (lambda: TargetProjection(scale=0.0), "scale is positive"),
        (lambda: FeedbackAlignment(hidden_lr=-1.0), "hidden_lr is at least 0"),
        (lambda: Backprop().register(mlp()), "one device"),
    ],
)
def test_what_cannot_work_is_one_line(build: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as refused:
        build()
    assert len(str(refused.value).splitlines()) == 1
