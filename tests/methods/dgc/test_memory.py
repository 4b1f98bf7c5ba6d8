"""Error feedback and momentum correction against hand calculations and conservation laws."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import UserError
from repro.methods.dgc import ErrorFeedbackMemory, MomentumBuffer, TopKCompressor
from repro.methods.dgc import memory as memory_module


def send(memory, gradient, ratio):
    """One worker's step on one flat tensor; returns the dense form of what was sent."""
    (unsent,) = memory.accumulate(["w"], [gradient[None]])
    sparse = TopKCompressor(ratio).compress(unsent[0])
    memory.release("w", sparse.indices[None])
    return TopKCompressor.decompress(sparse)


def test_known_answer_of_two_steps():
    gradient = torch.tensor([0.1, -5.0, 0.2, 3.0], dtype=torch.float64)
    memory = ErrorFeedbackMemory(momentum=0.9)
    kept = torch.tensor([[0.1, 0.0, 0.2, 0.0]], dtype=torch.float64)
    for unsent in ([0.1, 0, 0.2, 0], [0.29, 0, 0.58, 0]):
        sent = send(memory, gradient, 0.5)
        torch.testing.assert_close(sent, torch.tensor([0, -5.0, 0, 3.0], dtype=torch.float64))
        expected = torch.tensor([unsent], dtype=torch.float64)
        torch.testing.assert_close(memory.unsent["w"], expected)
        torch.testing.assert_close(memory.velocity["w"], kept)
        kept = torch.tensor([[0.19, 0.0, 0.38, 0.0]], dtype=torch.float64)


def test_known_answer_of_nesterov():
    memory = ErrorFeedbackMemory("nesterov", momentum=0.5)
    gradient = torch.tensor([[1.0, 2.0]])
    memory.accumulate(["w"], [gradient])  # U = 0.5 g, V = 1.5 g
    memory.accumulate(["w"], [gradient])  # U = 0.75 g, V = 1.5 g + 1.75 g
    torch.testing.assert_close(memory.velocity["w"], 0.75 * gradient)
    torch.testing.assert_close(memory.unsent["w"], 3.25 * gradient)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    ratio=st.sampled_from([0.05, 0.3, 1.0]),
    mode=st.sampled_from(["gradient", "velocity", "nesterov"]),
)
def test_conservation(seed, ratio, mode):
    """Without masking, what was sent plus what is kept is what came in."""
    generator = torch.Generator().manual_seed(seed)
    memory = ErrorFeedbackMemory(mode, momentum=0.8, masking=False)
    sent = came_in = u = torch.zeros(40, dtype=torch.float64)
    for _ in range(12):
        gradient = torch.randn(40, generator=generator, dtype=torch.float64)
        if mode == "gradient":
            came_in = came_in + gradient
        elif mode == "velocity":
            u = 0.8 * u + gradient
            came_in = came_in + u
        else:
            u = 0.8 * (u + gradient)
            came_in = came_in + u + gradient
        sent = sent + send(memory, gradient, ratio)
    torch.testing.assert_close(sent + memory.unsent["w"][0], came_in, rtol=0, atol=1e-12)


def packets(masking, wait, steps, mode="velocity"):
    """What one coordinate with g = 1 sends when it may send every `wait` steps."""
    memory = ErrorFeedbackMemory(mode, momentum=0.9, masking=masking)
    amounts = []
    for step in range(1, steps + 1):
        (unsent,) = memory.accumulate(["w"], [torch.ones(1, 1, dtype=torch.float64)])
        if step % wait == 0:
            amounts.append(unsent.item())
            memory.release("w", torch.zeros(1, 1, dtype=torch.int64))
    return amounts


def test_worked_example_of_waiting_four_steps():
    assert packets(masking=True, wait=4, steps=8) == pytest.approx([9.049, 9.049])
    assert packets(masking=False, wait=4, steps=8) == pytest.approx([9.049, 19.6930489])
    assert packets(masking=True, wait=4, steps=8, mode="gradient") == pytest.approx([4, 4])


@pytest.mark.parametrize("wait", [1, 2, 3, 7, 20])
def test_constant_gradient_closed_form(wait):
    m = 0.9
    expected = (wait - m * (1 - m**wait) / (1 - m)) / (1 - m)
    assert packets(masking=True, wait=wait, steps=2 * wait) == pytest.approx([expected] * 2)
    if wait <= 2:
        assert expected == pytest.approx({1: 1, 2: 2 + m}[wait])


@pytest.mark.parametrize("nesterov", [False, True])
def test_sending_everything_unmasked_is_momentum_sgd_and_masked_is_plain_sgd(nesterov):
    generator = torch.Generator().manual_seed(0)
    mode: Any = "nesterov" if nesterov else "velocity"
    weights = {name: torch.zeros(30, dtype=torch.float64) for name in ("free", "masked")}
    memory = {name: ErrorFeedbackMemory(mode, 0.9, masking=name == "masked") for name in weights}
    momentum, plain = (torch.zeros(30, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizers = [
        torch.optim.SGD([momentum], lr=0.1, momentum=0.9, nesterov=nesterov),
        torch.optim.SGD([plain], lr=0.1),
    ]
    for _ in range(8):
        gradient = torch.randn(30, generator=generator, dtype=torch.float64)
        for name, weight in weights.items():
            weight -= 0.1 * send(memory[name], gradient, 1.0)
        momentum.grad = gradient
        # Nesterov looks ahead even from rest: a first step has the factor 1 + m.
        plain.grad = gradient * (1.9 if nesterov else 1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(weights["free"], momentum.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights["masked"], plain.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_buffer_is_torch_sgd(nesterov):
    generator = torch.Generator().manual_seed(0)
    buffer = MomentumBuffer(0.9, nesterov)
    mine = torch.zeros(5, dtype=torch.float64)
    theirs = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(6):
        gradient = torch.randn(5, generator=generator, dtype=torch.float64)
        theirs.grad = gradient.clone()
        optimizer.step()
        buffer.apply_(["w"], [gradient])
        mine -= 0.1 * gradient
    torch.testing.assert_close(mine, theirs.detach(), rtol=0, atol=1e-12)
    assert set(buffer.state_dict()) == {"w"}
    assert MomentumBuffer(0.0).state_dict() == {}


@pytest.mark.parametrize("mode", ["gradient", "velocity", "nesterov"])
def test_working_in_pieces_changes_nothing(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [torch.randn(3, 100), torch.randn(100, 3).T, torch.randn(3, 1)]
    pieces, whole = ErrorFeedbackMemory(mode), ErrorFeedbackMemory(mode)
    for _ in range(2):
        monkeypatch.setattr(memory_module, "_PIECE", 64)
        pieces.accumulate(["a", "b", "c"], gradients)
        monkeypatch.setattr(memory_module, "_PIECE", 1000)
        whole.accumulate(["a", "b", "c"], gradients)
    for kind, rows in whole.state_dict().items():
        for name, state in rows.items():
            assert torch.equal(state, pieces.state_dict()[kind][name])


def test_state_round_trip_is_a_copy():
    memory = ErrorFeedbackMemory()
    memory.accumulate(["a", "b"], [torch.ones(2, 3), torch.ones(2, 1)])
    state = memory.state_dict()
    memory.accumulate(["a"], [torch.ones(2, 3)])
    assert state["unsent"]["a"].max() == 1
    other = ErrorFeedbackMemory()
    other.load_state_dict(state)
    other.accumulate(["a"], [torch.ones(2, 3)])
    assert torch.equal(other.unsent["a"], memory.unsent["a"])
    assert torch.equal(other.velocity["a"], memory.velocity["a"])
    assert state["unsent"]["a"].max() == 1


def test_unknown_mode_is_refused():
    with pytest.raises(UserError, match="mode"):
        ErrorFeedbackMemory("momentum")  # type: ignore[arg-type]
