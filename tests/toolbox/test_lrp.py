"""Layer-wise relevance propagation against explicit matrices and modified gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from repro.errors import UserError
from repro.models import MLP, VGG, ResNetCIFAR
from repro.models.parts.residual import BasicBlock
from repro.toolbox.lrp import (
    AlphaBeta,
    Epsilon,
    Layer,
    Rule,
    Rules,
    ZBox,
    explained,
    one_hot,
    propagate,
    relevance,
    true_logit,
    z_plus,
)

LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 5, 6)),
    "dilated": (nn.Conv2d(2, 3, 2, dilation=2, bias=False), (3, 2, 5, 4)),
}
ZPLUS: Rules = {nn.Conv2d: z_plus(1e-12), nn.Linear: z_plus(1e-12)}
COMPOSITE: Rules = {nn.Conv2d: z_plus(1e-12), nn.Linear: Epsilon(1e-12)}
EPSILON: Rules = {nn.Conv2d: Epsilon(1e-12), nn.Linear: Epsilon(1e-12)}


@pytest.fixture(autouse=True)
def _alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)


def residual_net() -> nn.Module:
    """Both kinds of shortcuts, and averages of overlapping places."""
    projection = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        BasicBlock(4, 6, 2, projection), BasicBlock(6, 6, 1, nn.Identity()),
        nn.AvgPool2d(3, stride=1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """After some steps in train mode, which give batch norms something to fold."""
    model = model.double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


NETS: dict[str, Any] = {
    "mlp": lambda: MLP([1, 8, 8], 3, hidden=[20, 10]),
    "vgg": lambda: VGG([1, 8, 8], 3, [[4, 6], [6]], hidden=[8], batch_norm=True, dropout=0.5),
    "vgg with biases": lambda: VGG([1, 8, 8], 3, [[4], [6]]),
    "resnet": residual_net,
    "resnet without projections": lambda: ResNetCIFAR([1, 8, 8], 3, depth=8, width=4),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, and references."""
    x, y = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    return trained(NETS[request.param](), x, y), x, y


# -- Rules against the matrix of all contributions -------------------------------------------------


def contributions(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights w_ij as a matrix, z_ij of each example, and biases b_j, with the layer unrolled."""
    plain = copy.deepcopy(layer)
    bias = torch.zeros(()) if layer.bias is None else layer.bias.detach()
    if plain.bias is not None:
        plain.bias = None
    out = plain(x[:1])
    J: Any = jacobian(plain, x[:1])
    w = J.reshape(out.numel(), x[0].numel()).T
    b = (torch.zeros_like(out[0]) + (bias if out.ndim == 2 else bias.view(-1, 1, 1))).flatten()
    return w, x.flatten(1)[:, :, None] * w, b


@pytest.mark.parametrize("name", LAYERS)
def test_rules_against_all_contributions(name: str) -> None:
    layer, shape = copy.deepcopy(LAYERS[name][0]).double(), LAYERS[name][1]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    x = torch.randn(shape, dtype=torch.float64)
    z, low, high = layer(x).detach(), -3.0, 4.0
    R = torch.randn_like(z)
    w, z_Nij, b = contributions(layer, x)
    up, down, R_Nj = z_Nij.clamp(min=0), z_Nij.clamp(max=0), R.flatten(1)[:, None]

    def shares(part: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        total = (part.sum(1) + bias)[:, None]
        return (torch.where(total == 0, 0.0, part / total) * R_Nj).sum(2).view(shape)

    box = z_Nij - low * w.clamp(min=0) - high * w.clamp(max=0)
    expected: dict[Rule, Tensor] = {
        Epsilon(1e-12): shares(z_Nij, b),
        z_plus(1e-12): shares(up),
        z_plus(1e-12, bias=True): shares(up, b.clamp(min=0)),
        AlphaBeta(2.0, 1.0, 1e-12): 2 * shares(up) - shares(down),
        AlphaBeta(1.5, 0.5, 1e-12, bias=True): 1.5 * shares(up, b.clamp(min=0))
        - 0.5 * shares(down, b.clamp(max=0)),
        ZBox(low, high, 1e-12): shares(box),
    }
    with torch.no_grad():
        for rule, R_of_inputs in expected.items():
            torch.testing.assert_close(rule(layer, x, z, R), R_of_inputs, rtol=1e-5, atol=1e-7)


def test_the_box_may_differ_between_channels() -> None:
    layer, x = nn.Conv2d(2, 3, 1), torch.rand(1, 2, 1, 1)
    R = torch.ones(1, 3, 1, 1)
    w = layer.weight.detach().view(3, 2)
    parts = w * x.flatten() - torch.tensor([-1.0, -2.0]) * w.clamp(min=0)
    parts = parts - torch.tensor([3.0, 4.0]) * w.clamp(max=0)
    expected = (parts / parts.sum(1, keepdim=True)).sum(0)
    found = ZBox([-1.0, -2.0], [3.0, 4.0])(layer, x, layer(x), R).flatten()
    torch.testing.assert_close(found.detach(), expected)


def test_a_relative_epsilon_is_in_units_of_the_layer() -> None:
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)
    z, R = layer(x).detach(), torch.randn(5, 4)
    absolute = Epsilon(0.2 * float(z.abs().mean()))
    found, expected = Epsilon(0.2, relative=True)(layer, x, z, R), absolute(layer, x, z, R)
    torch.testing.assert_close(found, expected)


def test_positive_weights_and_inputs_make_the_rules_one() -> None:
    layer, x = nn.Linear(4, 3, bias=False), torch.rand(2, 4)
    nn.init.uniform_(layer.weight)
    z, R = layer(x).detach(), torch.randn(2, 3)
    one = Epsilon(1e-9)(layer, x, z, R)
    torch.testing.assert_close(one, z_plus(1e-9)(layer, x, z, R))
    torch.testing.assert_close(one, ZBox(0.0, 1e9, 1e-9)(layer, x, z, R))


# -- Networks --------------------------------------------------------------------------------------


def by_modified_gradients(
    model: nn.Module, x: Tensor, rules: Rules, y: Tensor
) -> dict[str, Tensor]:
    """Relevance as output times gradient of a network that is rewritten for it.

    A layer f is replaced by p (f / p), the quotient a constant and p what the rule shares by: its
    value stays, and input times gradient is the rule (Montavon et al. 2019, Section 10.3.2).
    """
    network = copy.deepcopy(explained(model))
    outputs: dict[str, Tensor] = {}

    def replace(name: str, layer: Layer) -> None:
        plain = copy.deepcopy(layer)
        positive, negative = copy.deepcopy(layer), copy.deepcopy(layer)
        is_positive = isinstance(rules[type(layer)], AlphaBeta)
        with torch.no_grad():
            positive.weight.clamp_(min=0)
            negative.weight.clamp_(max=0)
            for each in (positive, negative):
                if each.bias is not None:
                    each.bias.zero_()

        def forward(x: Tensor) -> Tensor:
            p = plain(x)
            if is_positive:
                p = positive(x.clamp(min=0)) + negative(x.clamp(max=0))
            outputs[name] = p * torch.where(p == 0, 0.0, plain(x) / p).detach()
            if is_positive:  # where nothing positive comes in, the value has no gradient
                outputs[name] = outputs[name] + torch.where(p == 0, plain(x), 0.0).detach()
            return outputs[name]

        layer.forward = forward  # type: ignore[method-assign, assignment]

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            replace(name, layer)
    x = x.clone().requires_grad_()
    logits = network(x)
    start = torch.where(F.one_hot(y, 3) > 0, logits / logits.detach(), 0.0).sum()
    outputs[""] = x
    gradients = torch.autograd.grad(start, list(outputs.values()))
    return {k: v.detach() * g for (k, v), g in zip(outputs.items(), gradients, strict=True)}


@pytest.mark.parametrize("rules", [ZPLUS, COMPOSITE, EPSILON], ids=["z+", "composite", "epsilon"])
def test_relevance_is_output_times_gradient_of_a_rewritten_network(
    net: tuple[nn.Module, Tensor, Tensor], rules: Rules
) -> None:
    model, x, y = net
    found, expected = (
        relevance(model, x, rules, one_hot(y)),
        by_modified_gradients(*net[:2], rules, y),
    )
    assert found.keys() == expected.keys()
    for name, R in found.items():
        size = expected[name].abs().max()
        torch.testing.assert_close(R / size, expected[name] / size, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "vgg", "vgg with biases"])
def test_a_chain_conserves_relevance_in_every_layer(name: str) -> None:
    x, y = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    found = relevance(trained(NETS[name](), x, y), x, ZPLUS, one_hot(y))
    totals = [float(R.sum()) for R in found.values()]
    assert totals == pytest.approx([12] * len(totals), rel=1e-4)


@pytest.mark.parametrize("name", ["resnet", "resnet without projections"])
def test_sums_and_averages_conserve_relevance(name: str) -> None:
    """From the output to the first layer, without biases, to which epsilon would lose some."""
    x, y = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    model = trained(NETS[name](), x, y)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.zero_()
                module.running_mean = torch.zeros_like(module.bias)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.zero_()
    found = relevance(model, x, EPSILON, one_hot(y))
    ends = [next(iter(found)), {"resnet": "0"}.get(name, "conv1"), ""]
    assert [float(found[end].sum()) for end in ends] == pytest.approx([12] * 3, rel=1e-4)


def test_without_biases_epsilon_is_input_times_gradient() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False),
    ).double()  # fmt: skip
    x, y = torch.randn(6, 1, 8, 8, dtype=torch.float64, requires_grad=True), torch.arange(6) % 3
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)
    R = relevance(model, x.detach(), EPSILON, true_logit(y))
    torch.testing.assert_close(R[""], x.detach() * gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(R[""].flatten(1).sum(1), logits.gather(1, y[:, None])[:, 0].detach())


def test_a_unit_that_only_inhibits_has_no_positive_relevance() -> None:
    model = MLP([4], 2, hidden=[6])
    assert isinstance(model[3], nn.Linear)
    with torch.no_grad():
        model[3].weight[:, 2] = -model[3].weight[:, 2].abs()
    R = relevance(model, torch.randn(9, 4), ZPLUS, one_hot(torch.arange(9) % 2))
    assert float(R["1"][:, 2].abs().max()) == 0
    assert float(R["1"].abs().sum()) > 0


def test_a_name_in_the_table_goes_before_a_type() -> None:
    model, x, start = MLP([4], 2, hidden=[6]), torch.randn(9, 4), one_hot(torch.zeros(9).long())
    named = relevance(model, x, {"3": Epsilon(), nn.Linear: z_plus()}, start)
    torch.testing.assert_close(named["1"], relevance(model, x, {nn.Linear: Epsilon()}, start)["1"])


def test_the_copy_computes_the_same_and_the_model_stays(
    net: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = net
    model.train()
    before = copy.deepcopy(model.state_dict())
    network = explained(model)
    relevance(model, x, ZPLUS, one_hot(y))
    assert model.training
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_layers_come_from_the_last_to_the_first() -> None:
    model = MLP([4], 2, hidden=[6, 5])
    start = one_hot(torch.zeros(3).long())
    names = [name for name, _ in propagate(explained(model), torch.randn(3, 4), ZPLUS, start)]
    assert names == ["5", "3", "1", ""]


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)], "batch norm '0' does not directly follow"),
        ([nn.LayerNorm(8)], r"no rule is known for '0' \(LayerNorm\)"),
        ([nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")], "by a number of zeros"),
    ],
)
def test_what_no_rule_is_known_for_is_one_line(layers: list[nn.Module], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        explained(nn.Sequential(*layers))


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(UserError, match="alpha - beta is 1, not"):
        AlphaBeta(2.0, 0.5)
    with pytest.raises(UserError, match="eps is positive"):
        Epsilon(0.0)
    with pytest.raises(UserError, match="no rule for layer '1' \\(Linear\\)"):
        relevance(
            MLP([4], 2, hidden=[]),
            torch.randn(1, 4),
            {nn.Conv2d: Epsilon()},
            one_hot(torch.zeros(1).long()),
        )
