"""Stacked networks equal as many separate ones; the memory network and the Neural GPU by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.gradient_noise import GradientNoise
from repro.models.language.memory_network import MemoryNetwork, position_encoding, weighted_counts
from repro.models.language.neural_gpu import NeuralGPU, hard_sigmoid
from repro.models.parts.restarts import Restarts
from repro.models.toys.stacked_mlp import INITS, StackedMLP

torch.set_num_threads(1)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, stacked: bool) -> None:
    """Ten clipped SGD steps."""
    method = GradientNoise(schedule="none")
    method.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        output = model(x)
        if stacked:
            total: Any = sum(F.cross_entropy(each, y) for each in output)
            total.backward()
        else:
            F.cross_entropy(output, y).backward()
        method.clip(model.parameters(), 0.5)
        method.before_step(model)
        optimizer.step()


def as_sequential(stacked: StackedMLP, member: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for weight, bias in zip(stacked.weights, stacked.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data = weight[member].detach().T.clone()
        linear.bias.data = bias[member, 0].detach().clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_a_stacked_mlp_trains_like_separate_networks() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 2, 3), torch.randint(4, (16,))
    stacked = StackedMLP((2, 3), 4, members=3, depth=4, width=7, init="he")
    separate = [as_sequential(stacked, member) for member in range(3)]
    train(stacked, x, y, stacked=True)
    for member, network in enumerate(separate):
        train(network, x, y, stacked=False)
        assert torch.allclose(stacked(x)[member], network(x), atol=1e-6)


def test_inits_have_their_deviations() -> None:
    for init, std in {"simple": 0.1, "he": 0.2, "sussillo_abbott": 1.450 / 50**0.5}.items():
        torch.manual_seed(0)
        weight = StackedMLP((50,), 2, members=4, depth=2, width=50, init=init).weights[1]
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert INITS["zero"](50) == 0


def test_from_zero_only_the_last_bias_ever_moves() -> None:
    model = StackedMLP((6,), 10, members=2, depth=3, width=5, init="zero")
    x = torch.randn(20, 6)
    y = torch.arange(20) % 10
    train(model, x, y, stacked=True)
    assert all(weight.abs().max() == 0 for weight in model.weights)
    assert all(bias.abs().max() == 0 for bias in model.biases[:-1])
    assert F.cross_entropy(model(x)[0], y).item() == pytest.approx(2.3026, abs=1e-4)


def test_dropout_differs_between_networks_and_stops_in_evaluation() -> None:
    torch.manual_seed(0)
    model = StackedMLP((6,), 3, members=2, depth=2, width=20, init="he", dropout=0.5)
    x = torch.randn(4, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def example(kind: str) -> tuple[partial, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "memory":
        network: Any = partial(MemoryNetwork, [5, 3], 8, dim=6, hops=2)
        return network, torch.randint(0, 8, (9, 5, 3)).short(), torch.randint(8, (9,))
    network = partial(NeuralGPU, [5], 4, maps=6, width=2)
    return network, torch.randint(4, (9, 5)), torch.randint(4, (9, 5))


@pytest.mark.parametrize("kind", ["memory", "neural_gpu"])
def test_restarts_train_like_separate_networks(kind: str) -> None:
    network, x, y = example(kind)
    stacked = Restarts(3, network)
    separate = []
    for member in range(3):
        separate.append(network())
        separate[-1].load_state_dict(stacked.state_of(member))
    assert not torch.equal(stacked(x)[0], stacked(x)[1])  # each has its own start
    train(stacked, x, y, stacked=True)
    for member, alone in enumerate(separate):
        train(alone, x, y, stacked=False)
        assert torch.allclose(stacked(x)[member], alone(x), atol=1e-5)


def test_restarts_survive_a_checkpoint() -> None:
    network, x, _ = example("memory")
    first, second = Restarts(2, network), Restarts(2, network)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_networks_with_running_state_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be stacked"):
        Restarts(2, lambda: nn.BatchNorm1d(3))


def test_weighted_counts_are_the_position_encoding() -> None:
    torch.manual_seed(0)
    x, table = torch.randint(0, 9, (3, 4, 5)), torch.randn(9, 6)
    spoken = (x != 0)[..., None]
    expected = (table[x] * spoken * position_encoding(5, 6)).sum(2)
    place = torch.arange(1, 6) / 5
    k = torch.arange(1, 7) / 6
    ours = weighted_counts(x, 1 - place, 9) @ table
    ours = ours - k * (weighted_counts(x, 1 - 2 * place, 9) @ table)
    assert torch.allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("linear", [False, True])
def test_a_memory_network_by_hand(linear: bool) -> None:
    """Sukhbaatar et al., equations 1 to 3, sentence by sentence."""
    torch.manual_seed(0)
    model = MemoryNetwork([4, 3], 7, dim=5, hops=2, linear_epochs=1)
    model.start_epoch(0 if linear else 1)
    x = torch.tensor([[[0, 0, 0], [3, 1, 0], [2, 2, 5], [4, 6, 0]]])
    encoding = position_encoding(3, 5)
    A = model.embeddings

    def bag(k: int, row: torch.Tensor) -> torch.Tensor:
        return sum(A[k][word] * encoding[j] for j, word in enumerate(row) if word != 0)  # type: ignore[return-value]

    u = bag(0, x[0, 3])
    for hop in range(2):
        inputs = [bag(hop, x[0, i]) + model.ages[hop, i] for i in (1, 2)]  # row 0 is empty
        outputs = [bag(hop + 1, x[0, i]) + model.ages[hop + 1, i] for i in (1, 2)]
        scores = torch.stack([m @ u for m in inputs])
        p = scores if linear else scores.softmax(0)
        u = u + sum(weight * c for weight, c in zip(p, outputs, strict=True))
    assert torch.allclose(model(x)[0], A[2] @ u, atol=1e-5)


def test_the_published_neural_gpu_has_its_shapes() -> None:
    model = NeuralGPU([41], 4)
    # Two CGRUs of three 3 x 3 filter banks over 24 maps; 24 numbers in and out of each symbol.
    per_cell = 3 * (24 * 24 * 9 + 24)
    assert sum(p.numel() for p in model.parameters()) == 2 * per_cell + 4 * 24 + 24 * 4 + 4
    assert model(torch.zeros(2, 41, dtype=torch.int64)).shape == (2, 4, 41)
    assert hard_sigmoid(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StackedMLP((4,), 2, init="hee"), "Did you mean 'he'"),
        (lambda: StackedMLP((4,), 2, dropout=1.0), "dropout"),
        (lambda: MemoryNetwork([1, 8, 8], 10), "dataset=babi_like"),
        (lambda: NeuralGPU([1, 8, 8], 10), "dataset=binary_multiplication"),
        (lambda: NeuralGPU([7], 4, kernel=2), "odd"),
    ],
)
def test_what_does_not_fit_is_one_line(build, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_stacked_parameters_are_those_of_the_network() -> None:
    network, x, _ = example("memory")
    stacked = Restarts(2, network)
    alone = network()
    for member in range(2):
        output = functional_call(alone, stacked.state_of(member), (x,))
        assert torch.allclose(output, stacked(x)[member], atol=1e-5)
